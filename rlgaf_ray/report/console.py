"""Console output of a run: rich tables and progress bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from rlgaf_ray.config.hidden import public
from rlgaf_ray.loop.callback import Callback
from rlgaf_ray.loop.outcome import Outcome
from rlgaf_ray.metrics import Metric, columns
from rlgaf_ray.training.warmup import WarmupProgress
from rlgaf_ray.types import Metrics

PLAIN_EVERY = 10  # iterations between two lines without a terminal
EVALUATED = "eval/perplexity"  # logged by every evaluation, for any task
QUICKLY_EVALUATED = "quick/two_sample_auc"
NOTABLE_SECONDS = 1.0  # the duration of a shorter wait is not printed
ROWS = 8  # iterations in the live table

TRAINING_COLUMNS = (
    "reward/mean",
    "generator/kl",
    "generator/entropy",
    "discriminator/accuracy",
    "eval/judge_share",
    "eval/closeness",
    "eval/success",
    "eval/f1",
    "quick/judge_share",
    "quick/success",
    "quick/two_sample_auc",
    "quick/f1",
    "rollout/samples_per_second",
)
RESULT_LINES = (
    "eval/closeness",
    "eval/judge_share",
    "eval/judge_share_asked_positive",
    "eval/judge_share_asked_negative",
    "eval/vader_share",
    "eval/embedding_share",
    "eval/panel_share",
    "eval/success",
    "eval/legal",
    "eval/arrives",
    "eval/exact_match",
    "eval/f1",
    "eval/f1_has_answer",
    "eval/f1_no_answer",
    "eval/in_context_share",
    "eval/answer_words",
    "eval/length_distance",
    "eval/two_sample_auc",
    "eval/embedding_two_sample_auc",
    "eval/real_nll",
    "eval/perplexity",
    "eval/perplexity_ratio",
    "eval/distinct_1",
    "eval/distinct_2",
    "eval/distinct_2_ratio",
    "eval/distinct_3",
    "eval/self_bleu",
    "eval/copied",
    "eval/degenerate_share",
    "eval/response_tokens",
    "eval/gap_closed",
)
INTERVAL = 1.96  # half-width of a 95 % interval, in standard errors


class Terminal(Callback):
    """Prints the progress and the results of a run and its warm-ups."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.rows: list[tuple[int, Metrics]] = []
        self.live: Live | None = None
        self.tenths: dict[str, int] = {}  # of each warm-up, printed last
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        )

    def on_message(self, text: str) -> None:
        self.console.print(visible(public(text)), highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        if not self.console.is_terminal:
            yield
            return
        with self.progress:
            yield

    def on_discriminator_warmup(self, update: int, total: int, metrics: Metrics) -> None:
        if update % 10 == 0 or update == total:
            loss, accuracy = metrics["discriminator/loss"], metrics["discriminator/accuracy"]
            self.on_message(f"discriminator warm-up {update}/{total}: loss {loss:.3f}, accuracy {accuracy:.2f}")

    def on_warmup(self, stage: str, progress: WarmupProgress) -> None:
        note = f"loss {progress.loss:.3f}, {progress.tokens_per_second:,.0f} tokens/s"
        name = progress.name(stage)
        if not self.console.is_terminal:
            tenth = 10 * progress.step // progress.num_steps
            if self.tenths.get(name) != tenth:
                self.tenths[name] = tenth
                self.on_message(f"{name} {progress.step}/{progress.num_steps}: {note}")
            return
        task = next((task.id for task in self.progress.tasks if task.description == name), None)
        if task is None:
            task = self.progress.add_task(name, total=progress.num_steps, note="")
        self.progress.update(task, completed=progress.step, note=note)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show ``what`` and the elapsed time while the block runs; print the duration afterwards."""
        started = time.perf_counter()
        if self.console.is_terminal:
            columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
            with Progress(*columns, console=self.console, transient=True) as progress:
                progress.add_task(what, total=None)
                yield
        else:
            self.on_message(f"{what} ...")
            yield
        if (seconds := time.perf_counter() - started) >= NOTABLE_SECONDS:
            self.on_message(f"{what}: done in {seconds:.0f} s")

    @contextmanager
    def training(self, *, start: int, total: int, first: str) -> Iterator[None]:
        """Show the progress of the training loop; ``first`` describes the wait before its first row."""
        for task in self.progress.task_ids:
            self.progress.remove_task(task)
        self.progress.add_task("training", total=total, completed=start, note=first)
        if not self.console.is_terminal:
            self.on_message(f"{first} ...")
            yield
            return
        with Live(self._view(), console=self.console, refresh_per_second=4) as self.live:
            yield

    def on_iteration(self, iteration: int, metrics: Metrics) -> None:
        # After a rollback, drop the rows of the iterations that are repeated.
        self.rows = [row for row in self.rows if row[0] < iteration] + [(iteration, metrics)]
        evaluated = EVALUATED in metrics
        if self.live is not None:
            self.progress.update(self.progress.task_ids[0], completed=iteration, note="")
            self.live.update(self._view())
        elif evaluated or QUICKLY_EVALUATED in metrics or iteration % PLAIN_EVERY == 0:
            cells = (f"{each.head} {each.shown(metrics[each.name])}" for each in columns(TRAINING_COLUMNS, metrics))
            self.on_message(f"iteration {iteration}: " + ", ".join(cells))

    def _view(self) -> Group:
        table = Table(box=None, header_style="bold")
        table.add_column("iteration", justify="right")
        shown = columns(TRAINING_COLUMNS, (name for _, metrics in self.rows for name in metrics))
        for each in shown:
            table.add_column(each.head, justify="right")
        evaluations = [row for row in self.rows if EVALUATED in row[1]]
        for iteration, metrics in sorted({row[0]: row for row in evaluations + self.rows[-ROWS:]}.values()):
            cells = [each.shown(metrics[each.name]) if each.name in metrics else "" for each in shown]
            table.add_row(str(iteration), *cells, style="cyan" if EVALUATED in metrics else None)
        return Group(table, self.progress)

    def on_end(self, outcome: Outcome) -> None:
        """Print the table of results before and after, the samples and the run folder."""
        if outcome.last:
            self.console.print(result_table(outcome))
            for before, after in zip(outcome.samples_before, outcome.samples_after, strict=False):
                self.console.print(f"[dim]before[/dim] {escape(visible(before))}", highlight=False)
                self.console.print(f"[green]after [/green] {escape(visible(after))}\n", highlight=False)
        run = outcome.config.run
        self.on_message(f"results are in {run.shown}")
        if outcome.interrupted:
            where = f"iteration {outcome.iteration}" + ("" if outcome.last else ", before its first evaluation")
            self.on_message(f"stopped after {where}; continue with --resume {run.again}")


def result_table(outcome: Outcome) -> Table:
    """Build the table of the SFT model, the trained model and real text."""
    title = f"before and after {outcome.evaluated} iterations, held-out prompts"
    return columns_table(title, {"SFT": outcome.first, "adversarial": outcome.last})


def columns_table(title: str, models: Mapping[str, Metrics]) -> Table:
    """Build a table with a column per model and one for real text.

    It shows the metrics that both the first and the last model have.
    """
    first, *_, last = models.values()
    table = Table(title=title)
    table.add_column("")
    for head in (*models, "real text"):
        table.add_column(head, justify="right")
    for each in columns(RESULT_LINES, (name for name in last if name in first), most=None):
        table.add_row(each.line, *(cell(metrics, each) for metrics in models.values()), real_cell(last, each))
    table.caption = caption(last)
    return table


def cell(metrics: Mapping[str, float | None], metric: Metric, name: str | None = None) -> str:
    """Format the value of ``metric`` (or of ``name`` in its format), with a 95 % interval if its error is logged."""
    name = name or metric.name
    value, error = metrics.get(name), metrics.get(f"{name}_stderr")
    if value is None:
        return ""
    return metric.shown(value) + ("" if error is None else f" ± {metric.shown(INTERVAL * error)}")


def real_cell(metrics: Mapping[str, float | None], metric: Metric) -> str:
    """Format the metric's value on real text, measured or known."""
    return cell(metrics, metric, metric.real) if isinstance(metric.real, str) else metric.shown(metric.real)


def caption(metrics: Mapping[str, float | None]) -> str:
    """Describe the interval and the judges' accuracies; empty without judges."""
    known = [
        f"{judge} {metrics[name]:.3f} on {what}"
        for judge, name, what in (
            ("linear judge", "eval/judge_accuracy", "whole reviews"),
            ("linear judge", "eval/judge_accuracy_window", "windows"),
            ("embedding judge", "eval/embedding_accuracy_window", "windows"),
        )
        if metrics.get(name) is not None
    ]
    return f"±: 95 % interval over prompts; accuracy of the {', '.join(known)}" if known else ""


def visible(text: str) -> str:
    """Replace non-printable characters: model output may contain terminal escape sequences."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


def write_samples(path: Path, before: Sequence[str], after: Sequence[str], iteration: int) -> None:
    """Write ``samples.md``: responses to the same prompts before and after, fenced so that none is read as Markdown."""
    parts = [f"# Samples before and after {iteration} iterations\n"]
    for number, (first, last) in enumerate(zip(before, after, strict=False), start=1):
        longest = max(map(len, re.findall("~+", f"{first} {last}")), default=0)
        fence = "~" * max(4, longest + 1)  # longer than any in a response
        parts.append(f"## {number}\n\n{fence}text\nbefore: {first}\n\nafter:  {last}\n{fence}\n")
    path.write_text("\n".join(parts), encoding="utf-8")
