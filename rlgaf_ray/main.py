"""The command line.

``python -m rlgaf_ray.main [train] [CONFIG.yaml] [key=value ...] [--small] [--resume [--other-versions]]
[--print-config]``
``python -m rlgaf_ray.main --resume s3://BUCKET/PREFIX/NAME [key=value ...]``
``python -m rlgaf_ray.main tune CONFIG.yaml [key=value ...] [--resume [--other-versions]]``
``python -m rlgaf_ray.main compare CONFIG.yaml [key=value ...] [--resume]``
``python -m rlgaf_ray.main plan [CONFIG.yaml] [key=value ...] [--nodes N] [--gpus-per-node G] [--gpu-memory GiB]
[--cpus-per-node C]``
``python -m rlgaf_ray.main evaluate RUN [RUN ...] [--temperatures T,T,...] [--sft-steps N,N,...] [--test]
[--out FOLDER]``
``python -m rlgaf_ray.main report RUN [RUN ...] [--out FOLDER] [--rating-sheet]``
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from rlgaf_ray import doctor
from rlgaf_ray.config import Config, ConfigError, dump_config, load_config, load_run_config, uri
from rlgaf_ray.config.presets import presets
from rlgaf_ray.data.storage import Remote
from rlgaf_ray.errors import UsageError, UserError
from rlgaf_ray.sweep.space import check_sweep

COMMANDS = ("train", "tune", "compare", "plan", "evaluate", "report")
EXIT_FAILURE, EXIT_INTERRUPTED = 1, 130
BUG = "this is a bug in rlgaf_ray: please report it, with the lines above and rlgaf_ray's version"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done; 1: failed; 2: wrong usage or config; 130: interrupted; 128 + n: stopped by signal n, with a checkpoint.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="replace")  # "?" stands for what its encoding does not have
    try:
        return _run(_parse(argv))
    except UserError as error:
        return _fail(error, error.exit_code)
    except KeyboardInterrupt:  # before or after the part of a run that a signal ends with a checkpoint
        return _fail("interrupted", EXIT_INTERRUPTED)
    except Exception:
        print(uri.public(traceback.format_exc()), end="", file=sys.stderr)
        return _fail(BUG, EXIT_FAILURE)


def _run(arguments: argparse.Namespace) -> int:
    match arguments.words[:1]:
        case ["report"]:
            return _report(arguments.words[1:], out=arguments.out, rating_sheet=arguments.rating_sheet)
        case ["evaluate"]:
            return _evaluate(arguments)
    tuned = arguments.words[:1] == ["tune"]
    config_path, overrides = _split(arguments.words, resume=arguments.resume)
    config = (
        _load_run_config(overrides)
        if arguments.resume and not config_path
        else _load_config(config_path, overrides, small=arguments.small)
    )
    if arguments.other_versions and (not arguments.resume or arguments.words[:1] == ["compare"]):
        raise UsageError("--other-versions goes on with a run or a sweep: add --resume")
    if tuned and not arguments.resume:
        check_sweep(config)
    if arguments.print_config:
        print(dump_config(config), end="")
        return 0
    _check_packages()
    # before the model is first looked at
    for risk in (*config.model.risks, *config.reward.risks, *config.tracking.risks):
        print(uri.public(risk), file=sys.stderr)
    if arguments.words[:1] == ["plan"]:
        return _plan(config, arguments)
    if arguments.words[:1] == ["compare"]:
        return _compare(config, resume=arguments.resume)
    return (_tune if tuned else _train)(config, resume=arguments.resume, other_versions=arguments.other_versions)


def _check_packages() -> None:
    if sentence := doctor.complaint():
        raise UserError(sentence)


def _train(config: Config, *, resume: bool, other_versions: bool) -> int:
    from rlgaf_ray.report.console import Terminal  # torch and ray load only now
    from rlgaf_ray.run.signals import Stop, stop_on_signals
    from rlgaf_ray.run.train import train

    _quiet_transformers()
    stop = Stop()
    with stop_on_signals(stop):
        outcome = train(config, resume=resume, other_versions=other_versions, callbacks=[Terminal(), stop])
    return stop.exit_code if outcome.interrupted else 0


def _tune(config: Config, *, resume: bool, other_versions: bool) -> int:
    from rlgaf_ray.sweep.tuner import sweep

    _quiet_transformers()
    return sweep(config, resume=resume, other_versions=other_versions)


def _compare(config: Config, *, resume: bool) -> int:
    from rlgaf_ray.compare.runner import compare

    _quiet_transformers()
    return compare(config, resume=resume)


def _quiet_transformers() -> None:
    """It reports new heads and shards; what matters of it is an exception."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _plan(config: Config, arguments: argparse.Namespace) -> int:
    from rlgaf_ray.plan.command import plan

    plan(
        config,
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        gpu_memory=arguments.gpu_memory,
        cpus_per_node=arguments.cpus_per_node,
    )
    return 0


def _report(folders: Sequence[str], *, out: str | None, rating_sheet: bool) -> int:
    if not folders:
        raise UsageError("report needs a run folder: rlgaf report runs/NAME [runs/OTHER ...]")

    from rlgaf_ray.data.storage import writing
    from rlgaf_ray.report.page import write_rating_sheet, write_report
    from rlgaf_ray.report.places import opened
    from rlgaf_ray.report.runs import load_run

    with opened(folders, out) as places:
        runs = [load_run(folder) for folder in places.folders]
        with writing(places.target):
            places.target.mkdir(parents=True, exist_ok=True)
            written = [write_report(runs, places.target)]
            if rating_sheet:
                written += write_rating_sheet(runs, places.target)
    print(*(places.shown(path) for path in written), sep="\n")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    folders = arguments.words[1:]
    if not folders:
        raise UsageError("evaluate needs a run folder: rlgaf evaluate runs/NAME [runs/OTHER ...]")
    _check_packages()

    from rich.console import Console

    from rlgaf_ray.run.evaluate import evaluate

    _quiet_transformers()
    asked = {name: getattr(arguments, name) for name in ("temperatures", "sft_steps", "sft_learning_rate")}
    evaluate(
        folders,
        **{name: value for name, value in asked.items() if value is not None},
        num_prompts=arguments.num_prompts,
        out=arguments.out,
        part="test" if arguments.test else "validation",
        console=Console(),
    )
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rlgaf", description="Post-train a language model by adversarial feedback.")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="train | tune | compare | plan | evaluate | report | CONFIG.yaml | PRESET | key=value | RUN",
        help="command, then its config file or preset and dotted overrides (train, tune, compare, plan), or run "
        "folders (evaluate, report)",
    )
    parser.add_argument("--small", action="store_true", help="the preset as it runs on two cores without a hub")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run (or sweep) that run.root and run.name say"
    )
    parser.add_argument(
        "--other-versions",
        action="store_true",
        help="resume although the package or its libraries have other versions than the run began with",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and exit")
    parser.add_argument(
        "--temperatures",
        type=_numbers(float),
        help="evaluate: of sampling, 0.6,0.7,0.8,0.9,1,1.1,1.2,1.3 by default",
    )
    parser.add_argument(
        "--sft-steps",
        type=_numbers(int),
        help="evaluate: SFT on the demonstrations for so many steps, 200,400 by default",
    )
    parser.add_argument("--sft-learning-rate", type=float, help="evaluate: of that SFT, 5e-4 by default")
    parser.add_argument(
        "--num-prompts", type=int, help="evaluate: prompts (default: the run's, with --test all of the test part)"
    )
    parser.add_argument(
        "--test", action="store_true", help="evaluate: on the test part, once all is decided; noted in the run's folder"
    )
    parser.add_argument("--nodes", type=_count, default=1, help="plan: machines, 1 by default")
    parser.add_argument("--gpus-per-node", type=int, help="plan: 8 by default where the config asks for GPUs, else 0")
    parser.add_argument("--gpu-memory", type=float, default=80.0, help="plan: GiB of one GPU, 80 by default")
    parser.add_argument("--cpus-per-node", type=_count, help="plan: this machine's by default")
    parser.add_argument("--out", help="evaluate, report: where to write (default: into the first run's folder)")
    parser.add_argument("--rating-sheet", action="store_true", help="report: also a blinded CSV for human judges")
    return parser.parse_intermixed_args(argv)


def _numbers(kind: type[int] | type[float]) -> Callable[[str], list[int] | list[float]]:
    def parse(text: str) -> list[int] | list[float]:
        values = [kind(part) for part in text.split(",") if part]
        if any(value <= 0 for value in values):
            raise ValueError
        return values

    parse.__name__ = "comma-separated positive numbers"  # argparse puts it into its message
    return parse


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _load_config(path: str | None, overrides: Sequence[str], *, small: bool) -> Config:
    """As ``load_config``, and from a URI, such as that of the best config of a sweep."""
    if path is None or not uri.is_uri(path):
        return load_config(path, overrides, small=small)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "config.yaml"
        try:
            uri.check(path)
            local.write_bytes(Remote(path).read_bytes() if uri.is_remote(path) else uri.local_path(path).read_bytes())
        except (ValueError, OSError) as error:
            raise ConfigError(f"cannot read config {path}: {error}") from None
        return load_config(local, overrides, small=small)


def _load_run_config(overrides: Sequence[str]) -> Config:
    from rlgaf_ray.loop.run_folder import config_file

    return load_run_config(overrides, config_file)


def _split(words: Sequence[str], *, resume: bool = False) -> tuple[str | None, list[str]]:
    """The config's path, if any, and the overrides; ``ConfigError`` for anything else."""
    rest = list(words)
    if rest and rest[0] in COMMANDS:
        rest.pop(0)
    if rest and uri.is_uri(rest[0]) and not _is_yaml(rest[0]):
        if not resume:
            raise ConfigError(
                f"{rest[0]}: a run's URI follows --resume; a new run takes run.root=URI and run.name=NAME"
            )
        try:
            root, name = uri.parent(rest.pop(0))
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return None, [f"run.root={root}", f"run.name={name}", *rest]
    path = rest.pop(0) if rest and ("=" not in rest[0] or uri.is_uri(rest[0])) else None
    if path is not None and not _is_yaml(path) and path not in presets():
        raise ConfigError(
            f"{path!r} is neither a command ({', '.join(COMMANDS)}) nor a .yaml file, a preset or key=value"
        )
    return path, rest


def _is_yaml(word: str) -> bool:
    return (word.partition("?")[0] if uri.is_uri(word) else word).endswith((".yaml", ".yml"))


def _fail(error: Exception | str, code: int) -> int:
    """One line, whatever a library put into its message, and without the keys that may stand in it."""
    line = " ".join(uri.public(str(error)).splitlines())
    print(
        "error: " + "".join(character if character.isprintable() else "\ufffd" for character in line), file=sys.stderr
    )
    return code


def entry_point() -> None:
    sys.exit(main())


if __name__ == "__main__":
    entry_point()
