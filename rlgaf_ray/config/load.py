"""YAML and dotted overrides into a checked config, and back into YAML."""

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
    """The defaults, changed by YAML files from left to right, changed by ``a.b.c=value``.

    ``path``: a file, a preset's name such as ``imdb_positive`` (``config/presets.py``), or several of them. A file may
    begin with ``extends:``, a preset or a file beside it. ``small``: each file's section ``small`` applies, too.
    Raises ``ConfigError`` for a file that cannot be read or parsed, an unknown key, or a value that does not fit.
    """
    return load_with_origins(path, overrides, small=small)[0]


def load_with_origins(
    path: Paths = None, overrides: Sequence[str] = (), *, small: bool = False
) -> tuple[Config, Origins]:
    """As ``load_config``, and the origin of each value that is set."""
    paths = [] if path is None else [path] if isinstance(path, str | Path) else path
    tree = compose(paths, overrides, small=small, takes_text=_takes_text)
    return _validated(tree), tree.origins


def run_config_file(
    overrides: Sequence[str], find: Callable[[RunSection], Path] = lambda run: run.folder / "config.yaml"
) -> Path:
    """The config that a run was started with, found by ``run.root`` and ``run.name``.

    ``find``: brings it here where the run is kept elsewhere.
    """
    run = load_config(None, [item for item in overrides if item.startswith(("run.root=", "run.name="))]).run
    if run.name is None:
        raise ConfigError("--resume needs run.name=NAME (and run.root, where it is not 'runs') or the config file")
    path = find(run)
    if not path.is_file():
        place = run.folder / "config.yaml" if run.remote is None else uri.child(run.shown, "config.yaml")
        raise ConfigError(f"nothing to resume: {place} does not exist (run.root and run.name say where to look)")
    return path


def dump_config(config: Config, origins: Origins | None = None) -> str:
    """YAML that loads back to an equal config, but for keys and tokens in its values, which are left out.

    ``origins``: behind each value that is not the default, a comment says where it was set.
    """
    values = public_values(config.model_dump(mode="json"))
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text if origins is None else _commented(text, values, origins)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with these dotted keys changed. Raises ``ConfigError`` for one that does not exist or fit."""
    tree = Tree(config.model_dump(mode="json"))
    for key, value in values.items():
        tree.set(key, value, Origin(), source=f"{key}={short(value)}")
    return _validated(tree)


def _validated(tree: Tree) -> Config:
    """A fault is laid to its file, unless the command line wrote it."""
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
    """Each value that is no section: a place on the line that a comment may end, and its key."""
    for name, value in node.value:
        key = (*above, str(name.value))
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _leaf_nodes(value, key)
        else:
            place = value if isinstance(value, yaml.ScalarNode) else name  # a list begins on the next line
            yield place.end_mark.index, key


def _at(tree: Any, key: Key) -> Any:
    for part in key:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _takes_text(key: str) -> bool:
    kind: Any = Config
    for part in key.split("."):
        known = kind.model_fields.get(part) if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        if known is None:
            return False
        kind = known.annotation
    return kind is str or str in get_args(kind)
