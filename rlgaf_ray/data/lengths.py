"""The discriminator's view of a response, and truncation that equalises response lengths."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from rlgaf_ray.config.discriminator import DiscriminatorSection
from rlgaf_ray.types import Demonstration, Rollout

Response = Demonstration | Rollout


@dataclass(frozen=True, slots=True)
class View:
    """The part of a response that the discriminator reads after the prompt; by default all of it.

    A final token in ``end_of_text_ids`` is removed, unless it is the only token. Then only the last ``last_tokens``
    tokens are kept.
    """

    end_of_text_ids: Collection[int] = ()
    last_tokens: int | None = None

    @staticmethod
    def configured(settings: DiscriminatorSection, end_of_text_ids: Callable[[], Collection[int]]) -> View:
        """Build the configured view. Calls ``end_of_text_ids`` only if it is needed: a model may have none."""
        cut = settings.match_lengths or settings.view == "without_end"
        return View(end_of_text_ids() if cut else (), settings.view_tokens)

    def span(self, item: Response) -> slice:
        """Return the view as a slice of the response."""
        response = item.response_ids
        stop = len(response) - (len(response) > 1 and int(response[-1]) in self.end_of_text_ids)
        return slice(0 if self.last_tokens is None else max(0, stop - self.last_tokens), stop)

    def read(self, items: Sequence[Response]) -> list[Demonstration]:
        """Return each prompt with the view of its response."""
        return [Demonstration(item.prompt_ids, item.response_ids[self.span(item)]) for item in items]


WHOLE = View()


def match_lengths(*kinds: Sequence[Response], view: View) -> tuple[list[Demonstration], ...]:
    """Truncate the views of several kinds of responses to the same length distribution.

    Row i of each kind is truncated to the shortest of the rows i of all kinds; a kind with fewer rows is cycled, an
    empty kind stays empty. With equal counts all kinds have the same lengths, else the same distribution. Truncation
    removes the end, or the beginning if the view has ``last_tokens``. The view should exclude end of text, which would
    otherwise reveal which response of a row was not truncated.
    """
    seen = [view.read(kind) for kind in kinds]
    present = [kind for kind in seen if kind]

    def cut(item: Demonstration, row: int) -> Demonstration:
        length = min(len(kind[row % len(kind)].response_ids) for kind in present)
        start = 0 if view.last_tokens is None else len(item.response_ids) - length
        return Demonstration(item.prompt_ids, item.response_ids[start : start + length])

    return tuple([cut(item, row) for row, item in enumerate(kind)] for kind in seen)


def on_one_prompt(first: Response, second: Response) -> tuple[Demonstration, Demonstration]:
    """Return both responses after the first one's prompt, truncated to the shorter one, so that positions align."""
    length = min(len(first.response_ids), len(second.response_ids))
    return (
        Demonstration(first.prompt_ids, first.response_ids[:length]),
        Demonstration(first.prompt_ids, second.response_ids[:length]),
    )
