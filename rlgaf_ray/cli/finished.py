"""Commands that read existing runs: evaluate, report, sample, runs, diff."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from rlgaf_ray.cli import options
from rlgaf_ray.cli.configured import check_packages
from rlgaf_ray.errors import UsageError, UserError


class Numbers(click.ParamType):
    """Comma-separated positive numbers."""

    name = "N,N,..."

    def __init__(self, number_type: type[int] | type[float]) -> None:
        self.number_type = number_type

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            numbers = [self.number_type(part) for part in value.split(",") if part]
        except ValueError:
            numbers = []
        if not numbers or not all(0 < number < math.inf for number in numbers):
            example = "0.8,1" if self.number_type is float else "200,400"
            self.fail(f"{value!r} is not a list of positive numbers such as {example}")
        return numbers


@click.command()
@options.run_folders("runs")
@click.option("--temperatures", type=Numbers(float), help="Default: 0.6,0.7,0.8,0.9,1,1.1,1.2,1.3.")
@click.option("--sft-steps", type=Numbers(int), help="Steps of the SFT baselines. Default: 200,400.")
@click.option("--sft-learning-rate", type=float, help="Of the SFT baselines. Default: 5e-4.")
@click.option("--num-prompts", type=click.IntRange(min=1), help="Default: the run's; with --test all.")
@click.option("--test", is_flag=True, help="Use the test split. Each use is recorded in the run.")
@options.out
@options.verbosity
def evaluate(runs: Sequence[str], test: bool, out: str | None, num_prompts: int | None, **settings: Any) -> int:
    """Compare runs with the SFT model at several temperatures."""
    if not runs:
        raise UsageError("evaluate needs a run folder: rlgaf evaluate runs/NAME [runs/OTHER ...]")
    check_packages()

    from rich.console import Console

    from rlgaf_ray.run.evaluate import evaluate as measure

    options.quiet_transformers()
    measure(
        runs,
        **{name: value for name, value in settings.items() if value is not None},
        num_prompts=num_prompts,
        out=out,
        part="test" if test else "validation",
        console=Console(),
    )
    return 0


@click.command()
@options.run_folders("runs")
@click.option("--rating-sheet", is_flag=True, help="Also write a blinded CSV for human raters.")
@options.out
def report(runs: Sequence[str], rating_sheet: bool, out: str | None) -> int:
    """Write report.html for one or more runs."""
    if not runs:
        raise UsageError("report needs a run folder: rlgaf report runs/NAME [runs/OTHER ...]")

    from rlgaf_ray.data.storage import writing
    from rlgaf_ray.report.page import write_rating_sheet, write_report
    from rlgaf_ray.report.places import opened
    from rlgaf_ray.report.runs import load_run

    with opened(runs, out) as places:
        loaded = [load_run(folder) for folder in places.folders]
        with writing(places.target):
            places.target.mkdir(parents=True, exist_ok=True)
            written = [write_report(loaded, places.target)]
            if rating_sheet:
                written += write_rating_sheet(loaded, places.target)
    print(*(places.shown(path) for path in written), sep="\n")
    return 0


@click.command()
@click.argument("run", type=click.Path())
@click.option("--prompt", "prompts", multiple=True, help="Text to continue or answer; can be repeated.")
@click.option("-n", "--samples", type=click.IntRange(min=1), default=4, show_default=True, help="Samples per model.")
@click.option("--temperature", type=options.PositiveNumber(), help="Default: the run's.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Default: the run's task.response_tokens.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@options.verbosity
def sample(
    run: str, prompts: Sequence[str], samples: int, temperature: float | None, max_tokens: int | None, seed: int
) -> int:
    """Sample a run's SFT model and trained model side by side.

    The discriminator scores each sample. Without --prompt, prompts are read from
    the terminal or a pipe, one per line.
    """
    check_packages()

    from rich.console import Console

    from rlgaf_ray.report.samples import show_samples
    from rlgaf_ray.run.sample import open_sampler

    options.quiet_transformers()
    console = Console()
    with open_sampler(run, report=lambda text: print(text, file=sys.stderr)) as sampler:
        for prompt in prompts or _typed_prompts():
            try:
                found = sampler.sample(
                    prompt, num_samples=samples, temperature=temperature, max_tokens=max_tokens, seed=seed
                )
            except UserError as error:  # at an interactive prompt, ask for another one
                if prompts or not sys.stdin.isatty():
                    raise
                print(f"error: {error}", file=sys.stderr)
            else:
                show_samples(prompt, found, console)
    return 0


def _typed_prompts() -> Iterator[str]:
    """Yield non-empty lines from the terminal or a pipe."""
    while True:
        try:
            line = input("prompt> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line


@click.command()
@click.argument("root", default="runs", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def runs(root: str, as_json: bool) -> int:
    """List runs with state, iterations, best metric, size and age."""
    from rlgaf_ray.report.listing import as_records, list_runs, listing_table

    found = list_runs(root)
    if as_json:
        import json

        print(json.dumps(as_records(found), indent=1))
        return 0

    from rich.console import Console

    Console().print(listing_table(found) if found else f"no runs in {root}", highlight=False)
    return 0


@click.command()
@click.argument("first", type=click.Path(), metavar="A")
@click.argument("second", type=click.Path(), metavar="B")
def diff(first: str, second: str) -> int:
    """Show the differences of two runs: config, versions, results."""
    from rich.console import Console

    from rlgaf_ray.report.difference import differences
    from rlgaf_ray.report.places import opened

    with opened([first, second], None) as places:
        Console().print(differences(places.folders, places.places), highlight=False)
    return 0
