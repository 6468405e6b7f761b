"""What the scripts here share: the rows of ``rows.yaml``, and the lines that ``run.py`` has appended for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROWS: dict[str, dict[str, Any] | None] = yaml.safe_load((HERE / "rows.yaml").read_text())


def lines_of(folder: Path, row: str) -> dict[int, dict[str, Any]]:
    """Results of a row below ``results/PART``, by replicate."""
    file = folder / f"{row}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return {line["replicate"]: line for line in lines}
