"""Merge config files and overrides into one tree, and record where each value was set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlgaf_ray.config.hidden import public
from rlgaf_ray.config.presets import nearest, presets
from rlgaf_ray.config.reader import read_yaml
from rlgaf_ray.errors import UsageError

SMALL = "small"  # section with overrides for two cores
EXTENDS = "extends"  # key with the preset or file that a file extends

Key = tuple[str, ...]
Values = dict[str, Any]


class ConfigError(UsageError):
    """Invalid config. The message is one line with the key, the value and the fix."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was set: a file, its section ``small``, or the command line (no file)."""

    file: str | None = None
    small: bool = False

    def __str__(self) -> str:
        if self.file is None:
            return "command line"
        return f"{SMALL} ({self.file})" if self.small else self.file


@dataclass
class Tree:
    """Nested values with the origin of each leaf. Later layers override earlier ones."""

    values: Values = field(default_factory=dict)
    origins: dict[Key, Origin] = field(default_factory=dict)
    layers: list[Origin] = field(default_factory=list)

    def merge(self, changes: Values, origin: Origin) -> None:
        """Apply a file's values, section by section."""
        self.layers.append(origin)
        self.values = self._merged(self.values, changes, origin, ())

    def _merged(self, old: Values, changes: Values, origin: Origin, prefix: Key) -> Values:
        merged = dict(old)
        for key, value in changes.items():
            place = (*prefix, str(key))
            if isinstance(value, dict) and isinstance(merged.get(key), dict):
                merged[key] = self._merged(merged[key], value, origin, place)
            else:
                self._record(place, value, origin, replaced=key in merged)
                merged[key] = value
        return merged

    def set(self, key: str, value: Any, origin: Origin, *, source: str) -> None:
        """Set a dotted key. Raises ``ConfigError``, prefixed with ``source``, if a parent is a value."""
        parts = key.split(".")
        self.layers.append(origin)
        node = self.values = dict(self.values)
        for depth, part in enumerate(parts[:-1]):
            below = node.get(part, {})
            if not isinstance(below, dict):
                raise ConfigError(f"{source}: {'.'.join(parts[: depth + 1])} is a value, not a section")
            node[part] = dict(below)
            node = node[part]
        self._record(tuple(parts), value, origin, replaced=parts[-1] in node)
        node[parts[-1]] = value

    def _record(self, place: Key, value: Any, origin: Origin, *, replaced: bool) -> None:
        if replaced:
            for each in [each for each in self.origins if each[: len(place)] == place]:
                del self.origins[each]
        self.origins.update(dict.fromkeys((key for key, _ in leaves(value, place)), origin))

    def last(self, place: Key) -> Origin | None:
        """Return the most recent origin of a value at, above or below this key."""
        found = {origin for key, origin in self.origins.items() if _on_one_branch(key, place)}
        return max(found, key=self.layers.index, default=None)


def compose(
    paths: Sequence[str | Path],
    overrides: Sequence[str] = (),
    *,
    small: bool = False,
    takes_text: Callable[[str], bool] = lambda key: False,
) -> Tree:
    """Merge files from left to right, each after the file that it extends, then overrides ``a.b.c=value``.

    ``small``: apply each file's section ``small`` after the file's own values. ``takes_text``: whether a dotted key
    accepts a string, so that ``[::1]:6379`` needs no quotes. Raises ``ConfigError`` for invalid input.
    """
    tree = Tree()
    has_small = False
    for path in paths:
        for name, values in _documents(*find(path)):
            smaller = values.pop(SMALL, None)
            tree.merge(values, Origin(name))
            if small and isinstance(smaller, dict):
                tree.merge(smaller, Origin(name, small=True))
                has_small = True
    if small and not has_small:
        hint = f"{' and '.join(map(str, paths))} {'has' if len(paths) == 1 else 'have'} none" if paths else "none given"
        raise ConfigError(f"--small needs a config file with a section '{SMALL}:', but {hint}")
    for override in overrides:
        key, separator, text = override.partition("=")
        source = f"override {printable(override)!r}"
        if not separator or not all(key.split(".")):
            raise ConfigError(f"{source} is not of the form section.key=value")
        tree.set(key, _override(text, source=source, is_text=takes_text(key)), Origin(), source=source)
    return tree


def _override(text: str, *, source: str, is_text: bool) -> Any:
    """Parse an override as YAML, or keep text such as ``*.jsonl``, whose quotes the shell has removed."""
    try:
        return _parse(text, source=source)
    except ConfigError:
        if is_text and text.startswith(("[", "*")):
            return text
        raise


def find(path: str | Path) -> tuple[Path, str]:
    """Resolve a path or preset name; return the file and its display name."""
    path = Path(path)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path, str(path)
    if (preset := presets().get(path.as_posix())) is not None:
        return preset, f"{path.as_posix()}.yaml"
    name = printable(str(path))
    raise ConfigError(f"{name} is neither a .yaml file nor a preset; {nearest(name)}")


def _documents(file: Path, name: str, above: Sequence[tuple[Path, str]] = ()) -> list[tuple[str, Values]]:
    """Return display names and values of a file's ``extends`` chain, base first. ``above``: files that extend it."""
    chain = [*above, (file.resolve(), name)]
    if chain[-1][0] in [path for path, _ in above]:
        raise ConfigError(f"circular {EXTENDS}: {' -> '.join(each for _, each in chain)}; remove one of them")
    values = _read(file, name, by=above[-1][1] if above else None)
    base = values.pop(EXTENDS, None)
    if base is None:
        return [(name, values)]
    if not isinstance(base, str):
        raise ConfigError(f"{name}: {EXTENDS} must be a preset or a .yaml file, not {printable(str(base))}")
    if base.endswith((".yaml", ".yml")):
        found = file.parent / base, os.path.normpath(Path(name).parent / base)
    else:
        try:
            found = find(base)
        except ConfigError as error:
            raise ConfigError(f"{name}: {EXTENDS}: {error}") from None
    return [*_documents(*found, chain), (name, values)]


def _read(path: Path, name: str, *, by: str | None) -> Values:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: an invalid path, such as one with a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot read config {name}{f', which {by} {EXTENDS}' if by else ''}: {reason}") from None
    tree = _parse(text, source=name)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: expected sections such as 'run:' at the top, found a {type(tree).__name__}")
    return tree


def _parse(text: str, *, source: str) -> Any:
    try:
        return read_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None


def printable(text: str) -> str:
    """Format a key or an override for a message: one line, without credentials, at most 80 characters."""
    text = public(text)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 80 else text[:77] + "..."


def leaves(tree: Any, place: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yield the key of each value that is not a section, and the value."""
    if isinstance(tree, dict) and tree:
        for key, below in tree.items():
            yield from leaves(below, (*place, str(key)))
    else:
        yield place, tree


def _on_one_branch(place: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the keys are equal or one is a section that contains the other."""
    return all(part == other_part for part, other_part in zip(place, other, strict=False))
