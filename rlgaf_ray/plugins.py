"""Load objects that a config names by module or file, such as ``my_module:MyTracker`` or ``rewards.py:length``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from rlgaf_ray.errors import UserError


def load_object(path: str) -> Any:
    """Import ``module:name`` or ``file.py:name`` and return the object; the working directory is searched too.

    Raises ``UserError`` if the module cannot be imported or lacks the name.
    """
    source, _, name = path.rpartition(":")
    if not source or not name:
        raise UserError(f"{path!r} names no object: write module:name or file.py:name")
    try:
        module = _run_file(Path(source)) if source.endswith(".py") else _import(source)
    except Exception as error:  # user code may raise anything at import
        raise UserError(f"{source} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        return getattr(module, name)
    except AttributeError:
        raise UserError(f"{source} has no {name}") from None


def _import(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(name)


def _run_file(path: Path) -> ModuleType:
    name = f"rlgaf_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
