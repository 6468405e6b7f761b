"""Redaction: removes keys of URIs, tokens and secrets of the environment from text that is shown or logged."""

from __future__ import annotations

import os
import re
from typing import Any

MARK = "***"
# User and password of a URI end at the last @ before the path. With a colon in them, a slash that should have been
# written as %2F may precede the @. A colon before digits and a slash is a port.
USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(?:[^/?#\s'\"]*@|[^/?#\s'\"@:]*:(?!\d+(?:[/?#]|$))[^\s'\"]*@)")
SECRET_NAME = r"[A-Za-z0-9_.-]*(?:token|secret|passw(?:or)?d|signature|credential|api_?key|access_?key)[A-Za-z0-9_.-]*"
OPTION = re.compile(rf"([?&]{SECRET_NAME}=)[^&#\s'\"]+", re.IGNORECASE)
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
SECRET_VARIABLE = re.compile(r"(?:.*_)?(?:token|secret|password|passwd|credentials?|key|key_id)", re.IGNORECASE)
SHORTEST = 12  # minimum length of a secret: redacting values such as "1" or "disabled" would garble any text


def public(text: str) -> str:
    """Redact users, passwords and secret options of URIs, hub tokens and secrets of the environment."""
    text = USER.sub(r"\1", text)
    text = OPTION.sub(rf"\1{MARK}", text)
    text = HUB_TOKEN.sub(MARK, text)
    for value in _environment_secrets():
        text = text.replace(value, MARK)
    return text


def public_values(tree: Any) -> Any:
    """Apply ``public`` to every string in a tree of dicts and lists."""
    match tree:
        case str():
            return public(tree)
        case dict():
            return {key: public_values(value) for key, value in tree.items()}
        case list():
            return [public_values(value) for value in tree]
        case _:
            return tree


def _environment_secrets() -> list[str]:
    """Values of secret variables, longest first, since one may contain another; paths of key files are not secret."""
    values = (
        value
        for name, value in os.environ.items()
        if SECRET_VARIABLE.fullmatch(name) and len(value) >= SHORTEST and not value.startswith("/")
    )
    return sorted(values, key=len, reverse=True)
