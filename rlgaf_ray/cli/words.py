"""Arguments of a command that takes a config: presets, files, URIs and overrides, in any order."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from rlgaf_ray.config import ConfigError, uri
from rlgaf_ray.config.compose import printable
from rlgaf_ray.config.presets import nearest, presets


def split_words(
    words: Sequence[str], *, resume: bool = False, commands: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Split arguments into config files and overrides.

    ``commands``: names to suggest for an unknown word. Raises ``ConfigError`` if a word is neither.
    """
    paths: list[str] = []
    overrides: list[str] = []
    for word in words:
        if uri.is_uri(word) and not _is_yaml(word):
            overrides += _run_at(word, resume=resume)
        elif "=" in word and not uri.is_uri(word):
            overrides.append(word)
        elif _is_yaml(word) or word in presets():
            paths.append(word)
        else:
            raise ConfigError(_unknown(word, commands))
    return paths, overrides


def _run_at(place: str, *, resume: bool) -> list[str]:
    if not resume:
        raise ConfigError(f"{place}: a run's URI needs --resume; for a new run set run.root=URI and run.name=NAME")
    try:
        root, name = uri.parent(place)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return [f"run.root={root}", f"run.name={name}"]


def _unknown(word: str, commands: Sequence[str]) -> str:
    name = printable(word)
    if not commands:
        return f"{name} is not a preset, .yaml file or key=value; {nearest(name)}"
    near = difflib.get_close_matches(name, [*commands, *presets()], n=1)
    hint = f"did you mean {near[0]}?" if near else "see rlgaf --help and rlgaf presets"
    return f"{name} is not a command, preset, .yaml file or key=value; {hint}"


def _is_yaml(word: str) -> bool:
    return (word.partition("?")[0] if uri.is_uri(word) else word).endswith((".yaml", ".yml"))
