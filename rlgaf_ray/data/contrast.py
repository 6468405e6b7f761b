"""Contrast for the discriminator: rejected answers, or answers to other prompts."""

from __future__ import annotations

from collections.abc import Sequence

from rlgaf_ray.types import Demonstration

SAME = "rejected answers that equal the wanted one, left out"


def contrast_rows(
    groups: Sequence[str],
    items: Sequence[Demonstration],
    rejected: Sequence[Demonstration | str | None],
) -> list[Demonstration]:
    """Return at most one contrast row per demonstration, in the same order.

    Args:
        groups: the group of each demonstration, such as its prompt or article.
        items: the demonstrations.
        rejected: per demonstration its rejected answer; a string, the reason why that answer was dropped, gives no
            contrast; None gives the answer to another prompt (``mismatched``).
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
    """Return for each row the next row with a different response, in its group if possible; None if all are equal."""
    rows_of: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows_of.setdefault(group, []).append(row)
    found = _next_other(list(range(len(responses))), responses)
    for rows in rows_of.values():
        found |= {row: other for row, other in _next_other(rows, responses).items() if other is not None}
    return [found[row] for row in range(len(responses))]


def _next_other(rows: Sequence[int], responses: Sequence[object]) -> dict[int, int | None]:
    """Return for each row the next one, cyclically, whose response differs."""
    found: dict[int, int | None] = {}
    for place in reversed(range(2 * len(rows))):  # two passes, because the list is cyclic
        row, after = rows[place % len(rows)], rows[(place + 1) % len(rows)]
        found[row] = after if responses[after] != responses[row] else found.get(after)
    return found
