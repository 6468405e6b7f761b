"""Commands that take a config: train, tune, compare, plan."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlgaf_ray.cli import options
from rlgaf_ray.errors import UsageError

if TYPE_CHECKING:
    from rlgaf_ray.config import Config
    from rlgaf_ray.config.load import Origins

IMPLICIT = "rlgaf_ray.implicit"  # key in click's context.meta: the command line names no command


@click.command()
@options.words
@options.small
@options.resume
@options.other_versions
@options.print_config
@options.verbosity
def train(words: Sequence[str], small: bool, resume: bool, other_versions: bool, print_config: bool) -> int:
    """Train a model, or resume a run.

    Later files override earlier ones, key=value overrides all files. Default: configs/default.yaml.

    \b
    rlgaf train imdb_positive --small
    rlgaf train imdb_positive mine.yaml run.seed=1 generator.learning_rate=2e-5
    rlgaf train run.name=NAME --resume
    rlgaf train --resume s3://BUCKET/PREFIX/NAME
    """
    config, origins = load(words, small=small, resume=resume)
    check_other_versions(resume, other_versions)
    if print_config:
        return show(config, origins)
    check_before_models(config)

    from rlgaf_ray.report.console import Terminal  # imports torch and ray, so not before the config is checked
    from rlgaf_ray.run.signals import Stop, stop_on_signals
    from rlgaf_ray.run.train import train as start

    options.quiet_transformers()
    stop = Stop()
    with stop_on_signals(stop):
        outcome = start(config, resume=resume, other_versions=other_versions, callbacks=[Terminal(), stop])
    return stop.exit_code if outcome.interrupted else 0


@click.command()
@options.words
@options.small
@options.resume
@options.other_versions
@options.print_config
@options.verbosity
def tune(words: Sequence[str], small: bool, resume: bool, other_versions: bool, print_config: bool) -> int:
    """Search over sweep.space with Ray Tune.

    \b
    rlgaf tune sweeps/update_ratio
    rlgaf tune sweeps/update_ratio --resume
    """
    config, origins = load(words, small=small, resume=resume)
    check_other_versions(resume, other_versions)
    if not resume:
        from rlgaf_ray.sweep.space import check_sweep

        check_sweep(config)
    if print_config:
        return show(config, origins)
    check_before_models(config)

    from rlgaf_ray.sweep.tuner import sweep

    options.quiet_transformers()
    return sweep(config, resume=resume, other_versions=other_versions)


@click.command()
@options.words
@options.small
@options.resume
@options.print_config
@options.verbosity
def compare(words: Sequence[str], small: bool, resume: bool, print_config: bool) -> int:
    """Compare a config's method with baselines (compare.methods).

    \b
    rlgaf compare bridge run.name=bridge
    rlgaf compare bridge run.name=bridge --resume
    """
    config, origins = load(words, small=small, resume=resume)
    if print_config:
        return show(config, origins)
    check_before_models(config)

    from rlgaf_ray.compare.runner import compare as start

    options.quiet_transformers()
    return start(config, resume=resume)


@click.command()
@options.words
@options.small
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Number of machines.")
@click.option("--gpus-per-node", type=click.IntRange(min=0), help="Default: 8 if the config uses GPUs, else 0.")
@click.option("--gpu-memory", type=options.PositiveNumber(), default=80.0, show_default=True, help="GiB per GPU.")
@click.option("--cpus-per-node", type=click.IntRange(min=1), help="Default: this machine's.")
@options.print_config
def plan(
    words: Sequence[str],
    small: bool,
    nodes: int,
    gpus_per_node: int | None,
    gpu_memory: float,
    cpus_per_node: int | None,
    print_config: bool,
) -> int:
    """Estimate memory, traffic and time on other machines.

    \b
    rlgaf plan scaling/64_gpus --nodes 8 --gpus-per-node 8 --cpus-per-node 128
    """
    config, origins = load(words, small=small)
    if print_config:
        return show(config, origins)
    check_before_models(config)

    from rlgaf_ray.plan.command import plan as estimate

    estimate(config, nodes=nodes, gpus_per_node=gpus_per_node, gpu_memory=gpu_memory, cpus_per_node=cpus_per_node)
    return 0


def load(words: Sequence[str], *, small: bool, resume: bool = False) -> tuple[Config, Origins]:
    """Load the config of a command line. ``--resume`` without a config file loads the run's own."""
    from rlgaf_ray.cli.words import split_words
    from rlgaf_ray.config import uri
    from rlgaf_ray.config.load import load_with_origins, run_config_file

    context = click.get_current_context()
    commands = context.find_root().command.commands if context.meta.get(IMPLICIT) else ()  # type: ignore[attr-defined]
    paths, overrides = split_words(words, resume=resume, commands=tuple(commands))
    if resume and not paths:
        from rlgaf_ray.loop.run_folder import config_file

        return load_with_origins(run_config_file(overrides, config_file), overrides, small=small)
    with ExitStack() as stack:
        local = [_fetched(path, stack) if uri.is_uri(path) else path for path in paths]
        return load_with_origins(local, overrides, small=small)


def _fetched(place: str, stack: ExitStack) -> str:
    """Download a config to a temporary file, such as the best config of a sweep."""
    from rlgaf_ray.config import ConfigError, uri
    from rlgaf_ray.data.storage import Remote

    local = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "config.yaml"
    try:
        uri.check(place)
        local.write_bytes(Remote(place).read_bytes() if uri.is_remote(place) else uri.local_path(place).read_bytes())
    except (ValueError, OSError) as error:
        raise ConfigError(f"cannot read config {place}: {error}") from None
    return str(local)


def show(config: Config, origins: Origins) -> int:
    from rlgaf_ray.config import dump_config

    print(dump_config(config, origins), end="")
    return 0


def check_other_versions(resume: bool, other_versions: bool) -> None:
    if other_versions and not resume:
        raise UsageError("--other-versions has no effect without --resume: add --resume")


def check_before_models(config: Config) -> None:
    """Check the installed packages, and print settings that can run third-party code, before any model is read."""
    from rlgaf_ray.config import uri

    check_packages()
    for risk in (*config.model.risks, *config.task.risks, *config.reward.risks, *config.tracking.risks):
        print(uri.public(risk), file=sys.stderr)


def check_packages() -> None:
    from rlgaf_ray import doctor
    from rlgaf_ray.errors import UserError

    if problem := doctor.complaint():
        raise UserError(problem)
