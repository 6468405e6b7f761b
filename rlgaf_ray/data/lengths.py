"""The part of a response that the discriminator reads, and responses cut so that their lengths agree."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from rlgaf_ray.config.discriminator import DiscriminatorSection
from rlgaf_ray.types import Demonstration, Rollout

Response = Demonstration | Rollout


@dataclass(frozen=True, slots=True)
class View:
    """The part of a response that the discriminator reads after the prompt: by default all of it.

    First an end-of-text token at its end is cut off (an answer of that token alone keeps it), then all but the last
    ``last_tokens``.
    """

    end_of_text_ids: Collection[int] = ()
    last_tokens: int | None = None

    @staticmethod
    def configured(settings: DiscriminatorSection, end_of_text_ids: Callable[[], Collection[int]]) -> View:
        """``end_of_text_ids`` is called only where the end is cut off: a model may have none."""
        cut = settings.match_lengths or settings.view == "without_end"
        return View(end_of_text_ids() if cut else (), settings.view_tokens)

    def span(self, item: Response) -> slice:
        """Where the part lies in the response."""
        response = item.response_ids
        stop = len(response) - (len(response) > 1 and int(response[-1]) in self.end_of_text_ids)
        return slice(0 if self.last_tokens is None else max(0, stop - self.last_tokens), stop)

    def read(self, items: Sequence[Response]) -> list[Demonstration]:
        """Each prompt with the part of its response."""
        return [Demonstration(item.prompt_ids, item.response_ids[self.span(item)]) for item in items]


WHOLE = View()


def match_lengths(*kinds: Sequence[Response], view: View) -> tuple[list[Demonstration], ...]:
    """Views of several kinds of responses, whose lengths are distributed alike: length tells none from another.

    Row i of each kind is cut to the shortest of the rows i of all kinds (a kind of fewer rows counts from the start
    again; an empty one stays empty). With equal counts every kind has the same lengths; else the same distribution.
    Their ends are cut off, of last tokens their beginnings. The end of text should be no part of the view: where only
    one of a row ended by itself, it would tell what length no longer does.
    """
    seen = [view.read(kind) for kind in kinds]
    present = [kind for kind in seen if kind]

    def cut(item: Demonstration, row: int) -> Demonstration:
        length = min(len(kind[row % len(kind)].response_ids) for kind in present)
        start = 0 if view.last_tokens is None else len(item.response_ids) - length
        return Demonstration(item.prompt_ids, item.response_ids[start : start + length])

    return tuple([cut(item, row) for row, item in enumerate(kind)] for kind in seen)


def on_one_prompt(first: Response, second: Response) -> tuple[Demonstration, Demonstration]:
    """Both responses after the first's prompt, cut to the shorter of them: every position faces one of its kind."""
    length = min(len(first.response_ids), len(second.response_ids))
    return (
        Demonstration(first.prompt_ids, first.response_ids[:length]),
        Demonstration(first.prompt_ids, second.response_ids[:length]),
    )
