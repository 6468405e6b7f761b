"""Load a validated config from YAML files and dotted overrides, and dump it as YAML."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from rlgaf_ray.config import uri
from rlgaf_ray.config.compose import ConfigError, Key, Origin, Tree, compose
from rlgaf_ray.config.explain import describe, key_of, short
from rlgaf_ray.config.hidden import public, public_values
from rlgaf_ray.config.run import RunSection
from rlgaf_ray.config.schema import Config

Paths = str | Path | Sequence[str | Path] | None
Origins = Mapping[Key, Origin]


def load_config(path: Paths = None, overrides: Sequence[str] = (), *, small: bool = False) -> Config:
    """Load a config: the defaults, then YAML files from left to right, then overrides ``a.b.c=value``.

    ``path``: one or several files or presets such as ``imdb_positive`` (``config/presets.py``). A file can extend a
    preset or another file with ``extends:``. ``small``: also apply each file's section ``small``.
    Raises ``ConfigError`` for an unreadable file, invalid YAML, an unknown key or an invalid value.
    """
    return load_with_origins(path, overrides, small=small)[0]


def load_with_origins(
    path: Paths = None, overrides: Sequence[str] = (), *, small: bool = False
) -> tuple[Config, Origins]:
    """Like ``load_config``, but also return the origin of each value that was set."""
    paths = [] if path is None else [path] if isinstance(path, str | Path) else path
    tree = compose(paths, overrides, small=small, takes_text=_takes_text)
    return _validated(tree), tree.origins


def run_config_file(
    overrides: Sequence[str], find: Callable[[RunSection], Path] = lambda run: run.folder / "config.yaml"
) -> Path:
    """Return the config file of an existing run, given its ``run.root`` and ``run.name``.

    ``find``: downloads the file if the run is remote. Raises ``ConfigError`` without ``run.name`` or a file.
    """
    run = load_config(None, [item for item in overrides if item.startswith(("run.root=", "run.name="))]).run
    if run.name is None:
        raise ConfigError("--resume needs run.name=NAME (and run.root, unless it is 'runs') or a config file")
    path = find(run)
    if not path.is_file():
        place = run.folder / "config.yaml" if run.remote is None else uri.child(run.shown, "config.yaml")
        raise ConfigError(f"nothing to resume: {place} does not exist: check run.root and run.name")
    return path


def dump_config(config: Config, origins: Origins | None = None) -> str:
    """Return YAML that loads back to an equal config, except for credentials in its values, which are removed.

    ``origins``: add a comment with the origin to each value that is not the default.
    """
    values = public_values(config.model_dump(mode="json"))
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text if origins is None else _commented(text, values, origins)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a copy with these dotted keys changed. Raises ``ConfigError`` for an unknown key or invalid value."""
    tree = Tree(config.model_dump(mode="json"))
    for key, value in values.items():
        tree.set(key, value, Origin(), source=f"{key}={short(value)}")
    return _validated(tree)


def _validated(tree: Tree) -> Config:
    """Validate the values. An error names the file that set the value, unless it came from the command line."""
    try:
        return Config.model_validate(tree.values)
    except ValidationError as error:
        origin = tree.last(key_of(error))
        source = "" if origin is None or origin.file is None else f"{origin.file}: "
        raise ConfigError(source + describe(error)) from None


def _commented(text: str, values: dict[str, Any], origins: Origins) -> str:
    defaults = Config().model_dump(mode="json")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    for index, key in reversed(list(_leaf_nodes(root))):
        origin = next((origins[key[:depth]] for depth in range(len(key), 0, -1) if key[:depth] in origins), None)
        if origin is not None and _at(values, key) != _at(defaults, key):
            end = text.index("\n", index)
            text = f"{text[:end]}  # {public(str(origin))}{text[end:]}"
    return text


def _leaf_nodes(node: yaml.MappingNode, above: Key = ()) -> Iterator[tuple[int, Key]]:
    """Yield the position and key of each leaf value. A comment can be appended to the line of the position."""
    for name, value in node.value:
        key = (*above, str(name.value))
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _leaf_nodes(value, key)
        else:
            place = value if isinstance(value, yaml.ScalarNode) else name  # a list starts on the next line
            yield place.end_mark.index, key


def _at(tree: Any, key: Key) -> Any:
    for part in key:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _takes_text(key: str) -> bool:
    """Whether a dotted key accepts a string."""
    node: Any = Config
    for part in key.split("."):
        field = node.model_fields.get(part) if isinstance(node, type) and issubclass(node, BaseModel) else None
        if field is None:
            return False
        node = field.annotation
    return node is str or str in get_args(node)
