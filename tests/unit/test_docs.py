"""The pages: links, anchors, paths and config keys that they name are there, and the index has every page."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from rlgaf_ray.config import load_config

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("cluster/*.md"))
)
CARD = "rlgaf_ray/models/film_reviews/README.md"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
MOST_COLUMNS = 7
WIDTH = 100
FILES = (".py", ".md", ".yaml", ".jsonl", ".json", ".html", ".lock")  # suffixes, not keys
# `task.jsonl.path=x` and `--small run.seed=1` name keys; section.key alone does, too.
KEY = re.compile(r"(?<![\w./-])([a-z_]+(?:\.[a-z_0-9]+)+)(?==|$|[ ,])")
OF_THAT_TIME = ("docs/log/",)  # logs keep the keys and paths of their commands


@cache
def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """Without blocks of code."""
    return re.sub(r"^ *```.*?^ *```", "", text(page), flags=re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """Lines of code, in blocks and spans."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text(page), flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()] + CODE.findall(prose(page))


@cache
def anchors(page: str) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title.replace("`", "")).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", [*PAGES, CARD])
def test_links_lead_to_files_and_headings(page: str) -> None:
    broken = []
    for link in LINK.findall(prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.relative_to(ROOT).as_posix())):
            broken.append(link)
    assert broken == []


def test_the_index_has_every_page() -> None:
    index = {((ROOT / "docs") / link).resolve() for link in LINK.findall(text("docs/README.md"))}
    pages = {(ROOT / page).resolve() for page in PAGES if page not in ("README.md", "docs/README.md")}
    assert pages - index == set()


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith(OF_THAT_TIME)])
def test_configs_and_source_files_are_there(page: str) -> None:
    named = {path for code in commands(page) for path in re.findall(r"(?<![\w/.])configs/[\w/.-]+\.yaml", code)}
    named |= {path for code in CODE.findall(prose(page)) for path in re.findall(r"^(?:\w+/)+[a-z_]+\.py$", code)}
    roots = (ROOT, ROOT / "rlgaf_ray", ROOT / "tests")
    assert [path for path in sorted(named) if not any((root / path).is_file() for root in roots)] == []


def keys() -> set[str]:
    """Sections and keys of the config, dotted."""

    def walk(tree: object, prefix: str) -> set[str]:
        found = {prefix}
        if isinstance(tree, dict):
            for key, value in tree.items():
                found |= walk(value, f"{prefix}.{key}" if prefix else str(key))
        return found

    return walk(load_config(None, []).model_dump(), "") - {""}


KEYS = keys()
SECTIONS = {key.split(".")[0] for key in KEYS}


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith(OF_THAT_TIME)])
def test_config_keys_are_there(page: str) -> None:
    unknown = set()
    for code in commands(page):
        for key in KEY.findall(code):
            known = key in KEYS or key.startswith("sweep.space.") or key.endswith(FILES)
            if key.split(".")[0] in SECTIONS and not known:
                unknown.add(key)
    assert unknown == set()


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_narrow(page: str) -> None:
    """Tables that fit a screen, and prose that a diff shows line by line; a link or a code span may be longer."""
    wide = []
    for line in prose(page).splitlines():
        if line.startswith("|"):
            if len(re.sub(r"`[^`]*`", "", line).strip("|").split("|")) > MOST_COLUMNS:
                wide.append(line)
        elif len(line) > WIDTH and " " in re.sub(r"`[^`]*`|\[[^\]]*\]\([^)]*\)", "", line).strip(" -.,;:"):
            wide.append(line)
    assert wide == []
