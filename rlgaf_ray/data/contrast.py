"""Answers that a demonstration shall not be like: the one that the data reject, or the answer to another prompt."""

from __future__ import annotations

from collections.abc import Sequence

from rlgaf_ray.types import Demonstration

SAME = "rejected answers that equal the wanted one, left out"


def contrast_rows(
    groups: Sequence[str],
    items: Sequence[Demonstration],
    rejected: Sequence[Demonstration | str | None],
) -> list[Demonstration]:
    """One a demonstration, in their order, where there is one.

    Args:
        groups: the group of each demonstration, such as its prompt or article.
        rejected: its rejected answer; the reason where that is left out, which leaves it without contrast; None for a
            row without one, which has the answer to another prompt: the next of its group that differs, else any such.
    """
    others = mismatched(groups, [item.response_ids.tobytes() for item in items])
    found: list[Demonstration] = []
    for item, other, answer in zip(items, others, rejected, strict=True):
        if isinstance(answer, Demonstration):
            found.append(answer)
        elif answer is None and other is not None:
            found.append(Demonstration(item.prompt_ids, items[other].response_ids))
    return found


def mismatched(groups: Sequence[str], responses: Sequence[object]) -> list[int | None]:
    """For each row the next of its group with another response, else the next of all; None where all are equal."""
    rows_of: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows_of.setdefault(group, []).append(row)
    found = _next_other(list(range(len(responses))), responses)
    for rows in rows_of.values():
        found |= {row: other for row, other in _next_other(rows, responses).items() if other is not None}
    return [found[row] for row in range(len(responses))]


def _next_other(rows: Sequence[int], responses: Sequence[object]) -> dict[int, int | None]:
    """Around the circle of ``rows``: the next whose response differs."""
    found: dict[int, int | None] = {}
    for place in reversed(range(2 * len(rows))):  # twice around: the first time does not know what comes after its end
        row, after = rows[place % len(rows)], rows[(place + 1) % len(rows)]
        found[row] = after if responses[after] != responses[row] else found.get(after)
    return found
