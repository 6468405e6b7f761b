"""Validation errors of a config as one readable line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rlgaf_ray.config.compose import printable
from rlgaf_ray.config.hidden import public
from rlgaf_ray.config.schema import Config


def key_of(error: ValidationError) -> tuple[str, ...]:
    """Return the key of the first error, split at the dots."""
    return tuple(str(part) for part in error.errors()[0]["loc"])


def describe(error: ValidationError) -> str:
    """Return a message with the first error and the number of further errors."""
    errors = error.errors()
    location = [printable(part) for part in key_of(error)]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return _explain(errors[0], location) + more


def _explain(error: ErrorDetails, location: list[str]) -> str:
    key = ".".join(location)
    match error["type"]:
        case "extra_forbidden" | "invalid_key":
            return f"unknown key {key}; {_suggest(location)}"
        case "value_error":
            text = str(error["ctx"]["error"])
            return text if key in text else f"{key}: {text}"
        case "model_type":
            return f"{key}={short(error['input'])}: must be a section with {_children(key)}"
        case "missing":  # only in a tuple: every key has a default
            return f"{'.'.join(location[:-1])}={short(error['input'])}: must be a list with more values"
        case "too_long":
            return f"{key}={short(error['input'])}: must be a list of {error['ctx']['max_length']} values"
        case "tuple_type":
            return f"{key}={short(error['input'])}: must be a list of values"
        case _:
            return f"{key}={short(error['input'])}: must {error['msg'].partition(' should ')[2]}"


def short(value: Any) -> str:
    """Format a value as one line of YAML, without credentials, at most 80 characters."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True).removesuffix("\n...\n")
    text = public(" ".join(text.split()))  # before truncation, which could hide a credential's pattern
    return text if len(text) <= 80 else text[:77] + "..."


def _suggest(location: list[str]) -> str:
    """Suggest a similar key of the same section, else keys of that name elsewhere, else list the section's keys."""
    parent, name = ".".join(location[:-1]), location[-1]
    names = _children(parent).split(", ")
    if near := difflib.get_close_matches(name, names, n=1, cutoff=0.7):
        return f"did you mean {'.'.join([*location[:-1], near[0]])}?"
    if elsewhere := [key for key in keys_of(Config) if key.split(".")[-1] == name]:
        return f"did you mean {' or '.join(elsewhere)}?"
    return f"{parent or 'the top level'} has {', '.join(names)}"


def _children(parent: str) -> str:
    prefix = f"{parent}." if parent else ""
    names = [key.removeprefix(prefix) for key in keys_of(Config) if key.startswith(prefix)]
    return ", ".join(name for name in names if "." not in name) or "no keys yet"


def keys_of(section: type[BaseModel], prefix: str = "") -> Sequence[str]:
    """Return every dotted key of a section, including subsections."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for annotation in (field.annotation, *get_args(field.annotation)):
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                keys += keys_of(annotation, f"{prefix}{name}.")
    return keys
