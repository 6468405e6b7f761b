"""YAML and dotted overrides into a checked config; every mistake is one readable line."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rlgaf_ray.config import uri
from rlgaf_ray.config.hidden import public, public_values
from rlgaf_ray.config.presets import presets
from rlgaf_ray.config.reader import read_yaml
from rlgaf_ray.config.run import RunSection
from rlgaf_ray.config.schema import Config
from rlgaf_ray.errors import UsageError


class ConfigError(UsageError):
    """A config that cannot be used, in one line that names the key, the value and what would be right."""


SMALL = "small"  # a preset's section of what differs on two cores without a hub


def load_config(path: str | Path | None = None, overrides: Sequence[str] = (), *, small: bool = False) -> Config:
    """The defaults, changed by a YAML file (and by its section ``small``, if asked for), changed by ``a.b.c=value``.

    ``path``: the file, or a preset's name such as ``imdb_positive`` (``config/presets.py``).
    Raises ``ConfigError`` for a file that cannot be read or parsed, an unknown key, or a value that does not fit.
    """
    tree = {} if path is None else _read(_find(path))
    smaller = tree.pop(SMALL, None)
    if small:
        if not isinstance(smaller, dict):
            raise ConfigError(f"--small needs a config file with a section '{SMALL}:', and {path or 'none'} has none")
        _merge(tree, smaller)
    for override in overrides:
        _apply(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_describe(error, path, overrides)) from None


def load_run_config(
    overrides: Sequence[str], find: Callable[[RunSection], Path] = lambda run: run.folder / "config.yaml"
) -> Config:
    """The config that a run was started with, found by ``run.root`` and ``run.name``, changed by the overrides.

    ``find``: brings its file here where the run is kept elsewhere.
    """
    run = load_config(None, [item for item in overrides if item.startswith(("run.root=", "run.name="))]).run
    if run.name is None:
        raise ConfigError("--resume needs run.name=NAME (and run.root, where it is not 'runs') or the config file")
    path = find(run)
    if not path.is_file():
        place = run.folder / "config.yaml" if run.remote is None else uri.child(run.shown, "config.yaml")
        raise ConfigError(f"nothing to resume: {place} does not exist (run.root and run.name say where to look)")
    return load_config(path, overrides)


def dump_config(config: Config) -> str:
    """YAML that loads back to an equal config, but for keys and tokens in its values, which are left out."""
    return yaml.safe_dump(public_values(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with these dotted keys changed. Raises ``ConfigError`` for one that does not exist or fit."""
    tree = config.model_dump(mode="json")
    for key, value in values.items():
        _set(tree, key, value, source=f"{key}={_short(value)}")
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_describe(error, None, ())) from None


def _find(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path
    if (preset := presets().get(path.as_posix())) is not None:
        return preset
    name = _printable(str(path))
    near = difflib.get_close_matches(name, presets(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"the presets are {', '.join(presets())}"
    raise ConfigError(f"{name} is neither a .yaml file nor a preset; {hint}")


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
        return read_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None


def _merge(tree: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"override {_printable(override)!r} is not of the form section.key=value")
    source = f"override {_printable(override)!r}"
    try:
        value = read_yaml(text)
    except ValueError as error:
        if not text.startswith(("[", "*")) or not _takes_text(key):
            raise ConfigError(f"{source}: {error}") from None
        value = text  # [::1]:6379, *.jsonl: no YAML once the shell has taken the quotes
    _set(tree, key, value, source=source)


def _takes_text(key: str) -> bool:
    """Whether the value of a dotted key may be a text."""
    kind: Any = Config
    for part in key.split("."):
        field = kind.model_fields.get(part) if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        if field is None:
            return False
        kind = field.annotation
    return kind is str or str in get_args(kind)


def _set(tree: dict[str, Any], key: str, value: Any, *, source: str) -> None:
    parts = key.split(".")
    node = tree
    for depth, part in enumerate(parts[:-1]):
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{source}: {'.'.join(parts[: depth + 1])} is a value, not a section")
    node[parts[-1]] = value


def _describe(error: ValidationError, path: str | Path | None, overrides: Sequence[str]) -> str:
    """The first error in one line, with its file unless an override wrote it, and how many more there are."""
    errors = error.errors()
    first = errors[0]
    location = [_printable(str(part)) for part in first["loc"]]
    overridden = any(_on_one_branch(location, override.partition("=")[0].split(".")) for override in overrides)
    source = "" if path is None or overridden else f"{path}: "
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return source + _explain(first, location) + more


def _explain(error: ErrorDetails, location: list[str]) -> str:
    key = ".".join(location)
    match error["type"]:
        case "extra_forbidden" | "invalid_key":
            return f"unknown key {key}; {_suggest(location)}"
        case "value_error":
            text = str(error["ctx"]["error"])
            return text if key in text else f"{key}: {text}"
        case "model_type":
            return f"{key}={_short(error['input'])}: must be a section with {_children(key)}"
        case "missing":  # of a tuple: every other key has a default
            return f"{'.'.join(location[:-1])}={_short(error['input'])}: must be a list with more values"
        case "too_long":
            return f"{key}={_short(error['input'])}: must be a list of {error['ctx']['max_length']} values"
        case "tuple_type":
            return f"{key}={_short(error['input'])}: must be a list of values"
        case _:
            return f"{key}={_short(error['input'])}: must {error['msg'].partition(' should ')[2]}"


def _printable(text: str) -> str:
    """A key or an override as it is shown: on one line, without secrets, no longer than anybody means one to be."""
    text = public(text)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 80 else text[:77] + "..."


def _on_one_branch(location: Sequence[str], other: Sequence[str]) -> bool:
    return all(part == other_part for part, other_part in zip(location, other, strict=False))


def _short(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True).removesuffix("\n...\n")
    text = public(" ".join(text.split()))  # before it is cut: half a key is still one
    return text if len(text) <= 80 else text[:77] + "..."


def _suggest(location: list[str]) -> str:
    """A key of the same section spelt nearly so, else keys of that name elsewhere, else what the section has."""
    parent, name = ".".join(location[:-1]), location[-1]
    names = _children(parent).split(", ")
    if near := difflib.get_close_matches(name, names, n=1, cutoff=0.7):
        return f"did you mean {'.'.join([*location[:-1], near[0]])}?"
    if elsewhere := [key for key in _keys(Config) if key.split(".")[-1] == name]:
        return f"did you mean {' or '.join(elsewhere)}?"
    return f"{parent or 'the top'} has {', '.join(names)}"


def _children(parent: str) -> str:
    prefix = f"{parent}." if parent else ""
    names = [key.removeprefix(prefix) for key in _keys(Config) if key.startswith(prefix)]
    return ", ".join(name for name in names if "." not in name) or "no keys yet"


def _keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of the tree."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += _keys(kind, f"{prefix}{name}.")
    return keys
