"""Contrast for the discriminator: rejected answers, or answers to other prompts."""

from __future__ import annotations

from collections import OrderedDict
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
            contrast; None gives the answer to another prompt (``mismatched``), if there is one.
    """
    found: list[Demonstration] = []
    for item, other, answer in zip(items, mismatched(groups, items), rejected, strict=True):
        if isinstance(answer, Demonstration):
            found.append(answer)
        elif answer is None and other is not None:
            found.append(Demonstration(item.prompt_ids, items[other].response_ids))
    return found


def mismatched(groups: Sequence[str], items: Sequence[Demonstration]) -> list[int | None]:
    """Return for each row the next row whose response no row gives to its prompt, in its group if possible, or None."""
    pairs = [(item.prompt_ids.tobytes(), item.response_ids.tobytes()) for item in items]
    rows_of: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows_of.setdefault(group, []).append(row)
    answers: dict[bytes, set[bytes]] = {}
    for prompt, response in pairs:
        answers.setdefault(prompt, set()).add(response)
    found = _next_wrong(range(len(pairs)), pairs, answers)
    for rows in rows_of.values():
        found |= {row: other for row, other in _next_wrong(rows, pairs, answers).items() if other is not None}
    return [found[row] for row in range(len(pairs))]


def _next_wrong(
    rows: Sequence[int], pairs: Sequence[tuple[bytes, bytes]], answers: dict[bytes, set[bytes]]
) -> dict[int, int | None]:
    """Return for each row the next one, cyclically, whose response does not answer the row's prompt."""
    found: dict[int, int | None] = {}
    ahead: OrderedDict[bytes, int] = OrderedDict()  # the next row with each response; the nearest one is last
    for row in [*reversed(rows)] * 2:  # two passes, because the list is cyclic
        prompt, response = pairs[row]
        found[row] = None
        for candidate, other in reversed(ahead.items()):
            same = pairs[other][0] == prompt
            if same or candidate not in answers[prompt]:
                found[row] = found[other] if same else other
                break
        ahead[response] = row
        ahead.move_to_end(response)
    return found
