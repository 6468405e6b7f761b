"""YAML and dotted overrides into a checked config; every mistake is one readable line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from rlgaf_ray.config.schema import Config


class ConfigError(ValueError):
    """A config that cannot be used, in one line that names the key, the value and what would be right."""


class _Loader(yaml.SafeLoader):
    """Safe YAML 1.1 that reads 1e-5 as a number, as YAML 1.2 does, and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The defaults, changed by a YAML file, changed by ``a.b.c=value`` overrides.

    Raises ``ConfigError`` for a file that cannot be read or parsed, an unknown key, or a value that does not fit.
    """
    tree = {} if path is None else _read(Path(path))
    for override in overrides:
        _apply(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_describe(error, tree, source=None if path is None else str(path))) from None


def load_run_config(overrides: Sequence[str]) -> Config:
    """The config that a run was started with, found by ``run.root`` and ``run.name``, changed by the overrides."""
    run = load_config(None, [item for item in overrides if item.startswith(("run.root=", "run.name="))]).run
    if run.name is None:
        raise ConfigError("--resume needs run.name=NAME (and run.root, where it is not 'runs') or the config file")
    path = run.folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"nothing to resume: {path} does not exist (run.root and run.name say where to look)")
    return load_config(path, overrides)


def dump_config(config: Config) -> str:
    """YAML that loads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}") from None
    tree = _parse(text, source=str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections such as 'run:' at the top, found a {type(tree).__name__}")
    return tree


def _parse(text: str, *, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{source}: {where}{error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not YAML ({' '.join(str(error).split())})") from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    node = tree
    for depth, part in enumerate(parts[:-1]):
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {'.'.join(parts[: depth + 1])} is a value, not a section")
    node[parts[-1]] = _parse(text, source=f"override {override!r}")


def _describe(error: ValidationError, tree: Mapping[str, Any], *, source: str | None) -> str:
    errors = error.errors()
    first = errors[0]
    key = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(key, _keys(Config), n=1, cutoff=0.6)
            text = f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else f"; {_siblings(first['loc'])}")
        case "value_error":
            text = str(first["ctx"]["error"])
        case _:
            message = first["msg"].removeprefix("Input should be ")
            text = f"{key}={_short(first['input'])}: must be {message}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return (f"{source}: " if source else "") + text + more


def _short(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
    return text if len(text) <= 80 else text[:77] + "..."


def _keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of the tree."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += _keys(kind, f"{prefix}{name}.")
    return keys


def _siblings(location: tuple[int | str, ...]) -> str:
    parent = ".".join(str(part) for part in location[:-1])
    depth = len(location)
    names = [key.split(".")[-1] for key in _keys(Config) if key.count(".") == depth - 1 and key.startswith(parent)]
    return f"{parent or 'the top'} has {', '.join(names)}"
