"""The source of a task in Python that the config names."""

from __future__ import annotations

import inspect

from rlgaf_ray.config.task import TaskSection
from rlgaf_ray.data.task import TaskSource
from rlgaf_ray.errors import UserError
from rlgaf_ray.plugins import load_object


def python_source(task: TaskSection, *, base: bool, keep_rows: bool = False) -> TaskSource:
    """Import ``task.python.source`` and call it, with the section ``task`` if it takes an argument.

    ``base`` and ``keep_rows`` have no effect: the source reads what it needs. Raises ``UserError`` if it is not set,
    cannot be imported, or makes no ``TaskSource``.
    """
    path = task.python.source
    if path is None:
        raise UserError(
            "task.name=python is for a task in Python: set task.python.source to module:Source or file.py:Source, call "
            "rlgaf_ray.train or rlgaf_ray.evaluate with task=, or set another task.name"
        )
    make = load_object(path)
    if not callable(make):
        raise UserError(f"task.python.source={path} is no class or function: name one that makes a TaskSource")
    parameters = inspect.signature(make).parameters.values()
    takes_task = any(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in parameters)
    source = make(task) if takes_task else make()
    if not hasattr(source, "tokenized"):
        raise UserError(f"task.python.source={path} makes a {type(source).__name__}, which has no method tokenized")
    return source
