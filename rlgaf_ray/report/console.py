"""What a person sees of a run: rich tables and bars, plain lines where there is no terminal."""

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
from rlgaf_ray.training.warmup import Progress as WarmupProgress
from rlgaf_ray.types import Metrics

PLAIN_EVERY = 10  # iterations between lines where there is no terminal
EVALUATED = "eval/perplexity"  # stands in the metrics of an evaluated iteration, whatever the task
QUICKLY_EVALUATED = "quick/two_sample_auc"
NOTABLE_SECONDS = 1.0  # a shorter wait is not reported once it is over
ROWS = 8  # newest iterations in the live table

# Column head, metric, format.
TRAINING_COLUMNS = [
    ("reward", "reward/mean", "{:+.2f}"),
    ("KL", "generator/kl", "{:.3f}"),
    ("entropy", "generator/entropy", "{:.2f}"),
    ("D accuracy", "discriminator/accuracy", "{:.2f}"),
    ("judged", "eval/judge_share", "{:.3f}"),
    ("closeness", "eval/closeness", "{:.3f}"),
    ("F1", "eval/f1", "{:.1f}"),
    ("quick judged", "quick/judge_share", "{:.3f}"),
    ("quick AUC", "quick/two_sample_auc", "{:.3f}"),
    ("quick F1", "quick/f1", "{:.1f}"),
    ("samples/s", "rollout/samples_per_second", "{:.0f}"),
]

# Line, metric, the metric of real text beside it or its known value, format.
RESULT_LINES: list[tuple[str, str, str | float | None, str]] = [
    ("closeness to real text", "eval/closeness", 0.0, "{:.3f}"),
    ("judged as wanted (linear judge)", "eval/judge_share", "eval/judge_share_real", "{:.3f}"),
    ("  asked to be positive", "eval/judge_share_asked_positive", None, "{:.3f}"),
    ("  asked to be negative", "eval/judge_share_asked_negative", None, "{:.3f}"),
    ("judged as wanted (VADER)", "eval/vader_share", "eval/vader_share_real", "{:.3f}"),
    ("judged as wanted (embeddings)", "eval/embedding_share", "eval/embedding_share_real", "{:.3f}"),
    ("  mean of the judges", "eval/panel_share", "eval/panel_share_real", "{:.3f}"),
    ("exact match, %", "eval/exact_match", None, "{:.1f}"),
    ("F1, %", "eval/f1", None, "{:.1f}"),
    ("  where the context has an answer", "eval/f1_has_answer", None, "{:.1f}"),
    ("  where it has none", "eval/f1_no_answer", None, "{:.1f}"),
    ("answers found in their context", "eval/in_context_share", None, "{:.1%}"),
    ("answer length, words", "eval/answer_words", None, "{:.2f}"),
    ("  Wasserstein distance to real lengths", "eval/length_distance", None, "{:.3f}"),
    ("AUC real or generated (bag of words)", "eval/two_sample_auc", 0.5, "{:.3f}"),
    ("AUC real or generated (embeddings)", "eval/embedding_two_sample_auc", 0.5, "{:.3f}"),
    ("NLL of held-out real text, nats/token", "eval/real_nll", None, "{:.3f}"),
    ("perplexity under SFT", "eval/perplexity", "eval/perplexity_real", "{:.1f}"),
    ("  ratio to SFT's own", "eval/perplexity_ratio", None, "{:.2f}"),
    ("distinct-1", "eval/distinct_1", "eval/distinct_1_real", "{:.3f}"),
    ("distinct-2", "eval/distinct_2", "eval/distinct_2_real", "{:.3f}"),
    ("  ratio to SFT's own", "eval/distinct_2_ratio", None, "{:.2f}"),
    ("distinct-3", "eval/distinct_3", "eval/distinct_3_real", "{:.3f}"),
    ("self-BLEU", "eval/self_bleu", "eval/self_bleu_real", "{:.3f}"),
    ("8-grams copied from demonstrations", "eval/copied", "eval/copied_real", "{:.2%}"),
    ("empty or repeating answers", "eval/degenerate_share", "eval/degenerate_share_real", "{:.1%}"),
    ("response length, tokens", "eval/response_tokens", "eval/response_tokens_real", "{:.1f}"),
    ("derived: gap closed, SFT to real (linear judge)", "eval/gap_closed", None, "{:.1%}"),
]
INTERVAL = 1.96  # standard errors to either side: 95 %


class Terminal(Callback):
    """Shows a run and its warm-ups."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.rows: list[tuple[int, Metrics]] = []
        self.live: Live | None = None
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
        self.console.print(_visible(public(text)), highlight=False, markup=False, soft_wrap=True)

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
        if not self.console.is_terminal:
            if progress.step % (max(1, progress.num_steps // 10)) < 10 or progress.step == progress.num_steps:
                self.on_message(f"{stage} warm-up {progress.step}/{progress.num_steps}: {note}")
            return
        task = next((task.id for task in self.progress.tasks if task.description == f"{stage} warm-up"), None)
        if task is None:
            task = self.progress.add_task(f"{stage} warm-up", total=progress.num_steps, note="")
        self.progress.update(task, completed=progress.step, note=note)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Shows what the block waits for, with the seconds so far; afterwards how many it took."""
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
        """The progress of the loop; ``first`` is what it waits for before its first row."""
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
        # What was shown of later iterations was rolled back.
        self.rows = [row for row in self.rows if row[0] < iteration] + [(iteration, metrics)]
        evaluated = EVALUATED in metrics
        if self.live is not None:
            self.progress.update(self.progress.task_ids[0], completed=iteration, note="")
            self.live.update(self._view())
        elif evaluated or QUICKLY_EVALUATED in metrics or iteration % PLAIN_EVERY == 0:
            cells = (f"{head} {form.format(metrics[name])}" for head, name, form in TRAINING_COLUMNS if name in metrics)
            self.on_message(f"iteration {iteration}: " + ", ".join(cells))

    def _view(self) -> Group:
        table = Table(box=None, header_style="bold")
        table.add_column("iteration", justify="right")
        logged = {name for _, metrics in self.rows for name in metrics}
        columns = [column for column in TRAINING_COLUMNS if column[1] in logged]
        for head, _, _ in columns:
            table.add_column(head, justify="right")
        evaluations = [row for row in self.rows if EVALUATED in row[1]]
        for iteration, metrics in sorted({row[0]: row for row in evaluations + self.rows[-ROWS:]}.values()):
            cells = [form.format(metrics[name]) if name in metrics else "" for _, name, form in columns]
            table.add_row(str(iteration), *cells, style="cyan" if EVALUATED in metrics else None)
        return Group(table, self.progress)

    def on_end(self, outcome: Outcome) -> None:
        """The before/after table, the samples, and where everything is."""
        if outcome.last:
            self.console.print(result_table(outcome))
            for before, after in zip(outcome.samples_before, outcome.samples_after, strict=False):
                self.console.print(f"[dim]before[/dim] {escape(_visible(before))}", highlight=False)
                self.console.print(f"[green]after [/green] {escape(_visible(after))}\n", highlight=False)
        run = outcome.config.run
        self.on_message(f"everything is in {run.shown}")
        if outcome.interrupted:
            self.on_message(f"stopped after iteration {outcome.iteration}; go on with --resume {run.again}")


def result_table(outcome: Outcome) -> Table:
    title = f"before and after {outcome.iteration} iterations, held-out prompts"
    return columns_table(title, {"SFT": outcome.first, "adversarial": outcome.last})


def columns_table(title: str, models: Mapping[str, Metrics]) -> Table:
    """A column for each model and one for real text; what the first model and the last have both measured."""
    first, *_, last = models.values()
    table = Table(title=title)
    table.add_column("")
    for head in (*models, "real text"):
        table.add_column(head, justify="right")
    for line, metric, real, form in RESULT_LINES:
        if metric in first and metric in last:
            table.add_row(line, *(cell(metrics, metric, form) for metrics in models.values()), cell(last, real, form))
    table.caption = caption(last)
    return table


def cell(metrics: Mapping[str, float | None], metric: str | float | None, form: str) -> str:
    """The metric's value, or the known one, with its 95 % interval where there is a standard error."""
    value = metrics.get(metric) if isinstance(metric, str) else metric
    if value is None:
        return ""
    error = metrics.get(f"{metric}_stderr")
    return form.format(value) + ("" if error is None else f" ± {form.format(INTERVAL * error)}")


def caption(metrics: Mapping[str, float | None]) -> str:
    """How good the judges are, where there are any."""
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


def _visible(text: str) -> str:
    """Model output may hold escape sequences, which would steer the terminal."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


def write_samples(path: Path, before: Sequence[str], after: Sequence[str], iteration: int) -> None:
    """``samples.md``: the same prompts answered before and after; fenced, so that no answer is read as Markdown."""
    parts = [f"# Samples before and after {iteration} iterations\n"]
    for number, (first, last) in enumerate(zip(before, after, strict=False), start=1):
        longest = max(map(len, re.findall("~+", f"{first} {last}")), default=0)
        fence = "~" * max(4, longest + 1)  # an answer cannot end it
        parts.append(f"## {number}\n\n{fence}text\nbefore: {first}\n\nafter:  {last}\n{fence}\n")
    path.write_text("\n".join(parts))
