"""A YAML reader for configs: plain data without ambiguity, limited in size and depth."""

from __future__ import annotations

import re
from typing import Any

import yaml

MAX_CHARACTERS = 2**20
MAX_DEPTH = 30
MAX_NODES = 50_000  # with aliases expanded, against "billion laughs" documents


class Reader(yaml.SafeLoader):
    """Safe YAML 1.1 loader that reads 1e-5 as a number, like YAML 1.2, and rejects duplicate keys.

    All tags, such as ``!!python/name``, are rejected: no key needs one, and several crash the loader.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.nodes = 0
        self.sizes: dict[yaml.Node, int] = {}  # number of values below each complete node, for aliases

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            assert node is not None
            if node not in self.sizes:
                raise _error(f"alias *{event.anchor} refers to a value that contains it", event)
            self.nodes += self.sizes[node]
        else:
            if event.tag is not None:
                raise _error(f"tag {event.tag} is not supported: write plain values", event)
            if self.depth == MAX_DEPTH:
                raise _error(f"nested more than {MAX_DEPTH} levels deep", event)
            before, self.depth, self.nodes = self.nodes, self.depth + 1, self.nodes + 1
            node = super().compose_node(parent, index)
            assert node is not None
            self.depth, self.sizes[node] = self.depth - 1, self.nodes - before
        if self.nodes > MAX_NODES:
            raise _error(f"more than {MAX_NODES} values with aliases expanded", event)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


Reader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """Parse a document. Raises ``ValueError`` with line and column, on one line, for invalid YAML."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text)} characters are too long for a config (at most {MAX_CHARACTERS})")
    try:
        return yaml.load(text, Loader=Reader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}{_one_line(error.problem)}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"not YAML ({_one_line(error)})") from None


def _error(problem: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    mark = event.start_mark
    return yaml.composer.ComposerError(None, None, problem, mark)  # type: ignore[arg-type]  # the stubs have two types of mark


def _one_line(problem: object) -> str:
    text = " ".join(str(problem).split())
    return text if len(text) <= 160 else text[:157] + "..."
