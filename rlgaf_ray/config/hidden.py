"""Text made fit to be shown or written down: without the keys that URIs and the environment carry."""

from __future__ import annotations

import os
import re
from typing import Any

MARK = "***"
# The user and password of a URI end at the last @ before the path; with a colon in them also behind a stray slash,
# which somebody forgot to write as %2F. A colon in front of digits and a slash is a port.
USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(?:[^/?#\s'\"]*@|[^/?#\s'\"@:]*:(?!\d+(?:[/?#]|$))[^\s'\"]*@)")
SECRET_NAME = r"[A-Za-z0-9_.-]*(?:token|secret|passw(?:or)?d|signature|credential|api_?key|access_?key)[A-Za-z0-9_.-]*"
OPTION = re.compile(rf"([?&]{SECRET_NAME}=)[^&#\s'\"]+", re.IGNORECASE)
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
SECRET_VARIABLE = re.compile(r"(?:.*_)?(?:token|secret|password|passwd|credentials?|key|key_id)", re.IGNORECASE)
SHORTEST = 12  # characters of a variable's value: "1" or "disabled" would blot out half of any text


def public(text: str) -> str:
    """The text without the users, passwords and secret options of URIs, hub tokens and the environment's secrets."""
    text = USER.sub(r"\1", text)
    text = OPTION.sub(rf"\1{MARK}", text)
    text = HUB_TOKEN.sub(MARK, text)
    for value in _environment_secrets():
        text = text.replace(value, MARK)
    return text


def public_values(tree: Any) -> Any:
    """A tree of dicts and lists with every text in it made ``public``."""
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
    """Values, the longest first: one may hold another. Names of files that hold a key are no secret."""
    values = (
        value
        for name, value in os.environ.items()
        if SECRET_VARIABLE.fullmatch(name) and len(value) >= SHORTEST and not value.startswith("/")
    )
    return sorted(values, key=len, reverse=True)
