"""Shell completion of presets, files and dotted keys in bash and zsh, without importing the config classes."""

from __future__ import annotations

import glob
from functools import cache
from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, ZshComplete, add_completion_class

from rlgaf_ray.config.presets import first_line, presets

OPEN = "open"  # type of a partial completion, such as a section: the shell adds no space


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete an argument of a command that takes a config."""
    before = ctx.params.get(param.name or "") or ()
    return [] if "=" in incomplete or before[-1:] == ("=",) else words(incomplete)  # bash splits words at "="


def words(incomplete: str) -> list[CompletionItem]:
    """Return matching presets, YAML files and folders, and keys one level at a time."""
    items = [CompletionItem(name, help=first_line(path)) for name, path in presets().items()]
    items += [CompletionItem(path) for path in glob.glob(f"{glob.escape(incomplete)}*.y*ml")]
    items += [CompletionItem(path, OPEN) for path in glob.glob(f"{glob.escape(incomplete)}*/")]
    return [item for item in items if item.value.startswith(incomplete)] + _keys(incomplete)


def _keys(incomplete: str) -> list[CompletionItem]:
    section, dot, name = incomplete.rpartition(".")
    node = _defaults()
    for part in section.split(".") if dot else ():
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return []
    return [
        CompletionItem(f"{section}{dot}{key}{'.' if isinstance(value, dict) and value else '='}", OPEN)
        for key, value in node.items()
        if key.startswith(name)
    ]


@cache
def _defaults() -> Any:
    """Return ``configs/default.yaml``, which contains every key."""
    from rlgaf_ray.config.reader import read_yaml

    return read_yaml(presets()["default"].read_text(encoding="utf-8"))


class Bash(BashComplete):
    source_template = BashComplete.source_template.replace(
        "        elif [[ $type == 'plain' ]]; then",
        f"        elif [[ $type == '{OPEN}' ]]; then\n"
        "            COMPREPLY+=($value)\n"
        "            compopt -o nospace\n"
        "        elif [[ $type == 'plain' ]]; then",
    )


class Zsh(ZshComplete):
    source_template = ZshComplete.source_template.replace(
        '        elif [[ "$type" == "dir" ]]; then',
        f'        elif [[ "$type" == "{OPEN}" ]]; then\n'
        "            compadd -U -S '' -- \"$key\"\n"
        '        elif [[ "$type" == "dir" ]]; then',
    )


add_completion_class(Bash)
add_completion_class(Zsh)
