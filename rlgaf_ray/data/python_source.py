"""The source of a task in Python that the config names."""

from __future__ import annotations

import inspect

from rlgaf_ray.config.task import TaskSection
from rlgaf_ray.data.task import TaskSource
from rlgaf_ray.errors import UserError
from rlgaf_ray.plugins import load_object


def python_source(task: TaskSection, *, base: bool, keep_rows: bool = False) -> TaskSource:
    """Import ``task.python.source`` and call it, with the section ``task`` if it requires an argument.

    ``base`` and ``keep_rows`` have no effect: the source reads what it needs. Raises ``UserError`` if it is not set,
    cannot be imported or called like that, or makes no ``TaskSource``.
    """
    path = task.python.source
    if path is None:
        raise UserError(
            "task.name=python is for a task in Python: set task.python.source to module:Source or file.py:Source, call "
            "rlgaf_ray.train or rlgaf_ray.evaluate with task=, or set another task.name"
        )
    make = load_object(path)
    what = f"task.python.source={path}"
    if not callable(make):
        raise UserError(f"{what} is no class or function: name one that makes a TaskSource")
    try:
        required = [each for each in inspect.signature(make).parameters.values() if is_required(each)]
    except ValueError:  # some built-in classes have no signature
        required = []
    if len(required) > 1 or any(each.kind is each.KEYWORD_ONLY for each in required):
        raise UserError(f"{what} requires {', '.join(each.name for each in required)}: it is called with task at most")
    source = make(task) if required else make()
    if TaskSource not in type(source).__mro__:
        raise UserError(f"{what} makes a {type(source).__name__}, which is no subclass of rlgaf_ray.TaskSource")
    return source


def is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )
