"""The ``rlgaf`` program: its subcommands, and the error messages of an invalid command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches

import click
from click.shell_completion import CompletionItem, shell_complete

from rlgaf_ray import __version__
from rlgaf_ray.cli import completion
from rlgaf_ray.cli.configured import IMPLICIT, compare, plan, train, tune
from rlgaf_ray.cli.finished import diff, evaluate, report, runs, sample
from rlgaf_ray.cli.setup import doctor, presets
from rlgaf_ray.errors import UsageError

PROGRAM = "rlgaf"
COMPLETE = "_RLGAF_COMPLETE"
OWN_OPTIONS = ("-h", "--help", "--version")


class Program(click.Group):
    """Command group with ``train`` as the default command, so that ``rlgaf key=value`` trains."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def named(self, words: Sequence[str]) -> str | None:
        """Return the command if the first word that is not an option names one."""
        first = next((word for word in words if not word.startswith("-")), None)
        return first if first in self.commands else None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if (name := self.named(args)) is not None:
            position = args.index(name)
            args = [name, *args[:position], *args[position + 1 :]]
        elif args[:1] not in [[option] for option in OWN_OPTIONS] and not (ctx.resilient_parsing and not args):
            ctx.meta[IMPLICIT] = True
            args = ["train", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        commands = super().shell_complete(ctx, incomplete)
        return commands + (completion.words(incomplete) if incomplete and not incomplete.startswith("-") else [])


@click.group(
    cls=Program,
    options_metavar="",
    subcommand_metavar="[COMMAND] [ARG]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Each command has its own --help. Reference and shell completion: docs/cli.md.",
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def app() -> None:
    """Post-train a language model on demonstrations with adversarial feedback. Default COMMAND: train.

    \b
    rlgaf train imdb_positive --small run.seed=1
    rlgaf sample runs/NAME --prompt "This film"
    """


for command in (train, tune, compare, plan, evaluate, report, sample, runs, diff, doctor, presets):
    app.add_command(command)


def run(words: Sequence[str]) -> int:
    """Run one command and return its exit code. Raises ``UsageError`` if the command line is invalid."""
    if instruction := os.environ.get(COMPLETE):
        return shell_complete(app, {}, PROGRAM, COMPLETE, instruction)
    try:
        with app.make_context(PROGRAM, list(words)) as context:
            return app.invoke(context) or 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        raise UsageError(_explain(error, words)) from None


def _explain(error: click.UsageError, words: Sequence[str]) -> str:
    """Return the error message: the option at fault, a suggestion, and the help to read."""
    name = app.named(words) or "train"
    command = f"{PROGRAM} {name}"
    if not isinstance(error, click.NoSuchOption):
        message = error.format_message().strip().rstrip(".")
        return f"{command}: {message[:1].lower()}{message[1:]}; see {command} --help"
    option = error.option_name
    others = [f"{PROGRAM} {each}" for each, other in app.commands.items() if option in _options(other)]
    near = get_close_matches(option, _options(app.commands[name]), n=1)
    if others:
        hint = f", but {' and '.join(others)} {'has' if len(others) == 1 else 'have'}"
    else:
        hint = f"; did you mean {near[0]}?" if near else ""
    return f"{command} has no option {option}{hint} (see {command} --help)"


def _options(command: click.Command) -> list[str]:
    return [option for param in command.params if isinstance(param, click.Option) for option in param.opts]
