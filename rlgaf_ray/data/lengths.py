"""Responses cut so that their lengths agree."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rlgaf_ray.types import Demonstration, Rollout

Response = Demonstration | Rollout


def match_lengths(*kinds: Sequence[Response], end_of_text_ids: Collection[int]) -> tuple[list[Demonstration], ...]:
    """Kinds of responses whose lengths are distributed alike, so that length tells none from another.

    Row i of each kind is cut to the shortest of the rows i of all kinds (a kind of fewer rows counts from the start
    again; an empty one stays empty). With equal counts every kind has the same lengths; else the same distribution.
    The end of text is cut off first: where only one of a row ended by itself, it would tell what length no longer does.
    """
    ended = [[without_end(item, end_of_text_ids) for item in kind] for kind in kinds]
    present = [kind for kind in ended if kind]

    def length(row: int) -> int:
        return min(len(kind[row % len(kind)].response_ids) for kind in present)

    return tuple(
        [Demonstration(item.prompt_ids, item.response_ids[: length(row)]) for row, item in enumerate(kind)]
        for kind in ended
    )


def without_end(item: Response, end_of_text_ids: Collection[int]) -> Demonstration:
    """The response without an end-of-text token at its end; an answer of that token alone keeps it."""
    response = item.response_ids
    ends = len(response) > 1 and int(response[-1]) in end_of_text_ids
    return Demonstration(item.prompt_ids, response[:-1] if ends else response)


def on_one_prompt(first: Response, second: Response) -> tuple[Demonstration, Demonstration]:
    """Both responses after the first's prompt, cut to the shorter of them: every position faces one of its kind."""
    length = min(len(first.response_ids), len(second.response_ids))
    return (
        Demonstration(first.prompt_ids, first.response_ids[:length]),
        Demonstration(first.prompt_ids, second.response_ids[:length]),
    )
