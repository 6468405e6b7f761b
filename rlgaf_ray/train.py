"""One training run from config to exported models: wires the data, the warm-ups, the roles and the loop."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from platformdirs import user_cache_path
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from rlgaf_ray.actors.answers import ActorFailure, ActorSpent
from rlgaf_ray.actors.cluster import ray_session
from rlgaf_ray.actors.contrast import load_contrast
from rlgaf_ray.actors.placement import Placement, PlacementGroup, find_placement
from rlgaf_ray.actors.recovery import Recoveries, TooManyLost
from rlgaf_ray.actors.roles import RayRoles
from rlgaf_ray.actors.warmup import Warmups, prepare_warmups
from rlgaf_ray.config import dump_config
from rlgaf_ray.config.hidden import public_values
from rlgaf_ray.config.model import FILM_REVIEWS, FROM_SCRATCH
from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.base_reviews import refuse_base_reviews
from rlgaf_ray.data.cache import content_hash, write_atomically
from rlgaf_ray.data.handover import CHECKSUMS
from rlgaf_ray.data.imdb import ImdbTask
from rlgaf_ray.data.pairs import PairTask
from rlgaf_ray.data.rows import RowSource
from rlgaf_ray.data.storage import Place, Remote, StorageError, copy_tree, replace_text, writing
from rlgaf_ray.data.task import Task, evaluation_set, load_source
from rlgaf_ray.engines.vllm_process import require_vllm
from rlgaf_ray.evaluation.answers import AnswerMeasure
from rlgaf_ray.evaluation.embedding_judge import prepare_embedding_judge
from rlgaf_ray.evaluation.embeddings import MISSING, load_encode
from rlgaf_ray.evaluation.evaluate import Evaluator, Measure
from rlgaf_ray.evaluation.judge import prepare_judge
from rlgaf_ray.evaluation.sentiment import SentimentMeasure
from rlgaf_ray.evaluation.text import decode
from rlgaf_ray.loop.adversarial import AdversarialLoop, Display, Outcome
from rlgaf_ray.loop.checkpoint import Checkpoints
from rlgaf_ray.loop.data_checks import check_demonstrations
from rlgaf_ray.loop.guard import TrainingStopped
from rlgaf_ray.loop.run_folder import RunFolder
from rlgaf_ray.models.generator import (
    FROM_SCRATCH_VOCABULARY,
    TINY_GPT2,
    check_model_source,
    max_positions,
    num_layers,
)
from rlgaf_ray.models.lora import ADAPTERS
from rlgaf_ray.models.tokenizer import load_tokenizer, train_bpe, wrap_bpe
from rlgaf_ray.report.console import Terminal, write_samples
from rlgaf_ray.report.runs import SAMPLES, save_samples
from rlgaf_ray.tracking.build import make_trackers, open_trackers
from rlgaf_ray.training.architectures import DISCRIMINATORS
from rlgaf_ray.training.export import export_merged
from rlgaf_ray.training.regularization import check_frozen_layers
from rlgaf_ray.types import EvaluationPart

# transformers speaks of heads that are new and of shards; what matters of it is an exception.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

Resumed = tuple[Place, dict[str, Any], list[str]]  # a checkpoint, its state, what was wrong with those after it
Waiting = Callable[[str], AbstractContextManager[None]]
SIGNAL_EXIT_OFFSET = 128  # shells report a process ended by signal n as 128 + n


class RunFailed(RuntimeError):
    """The run ended early for a reason that one sentence tells."""


@dataclass(frozen=True, slots=True)
class Data:
    task: Task
    tokenizer: PreTrainedTokenizerBase


def train(config: Config, *, resume: bool) -> int:
    """Train as configured; returns the exit code: 0, or 128 + n when signal n asked for an early end.

    Raises ``ValueError`` for what a user can mend before anything expensive starts, ``RunFailed`` later.
    """
    config = with_name(config)
    folder = RunFolder(config.run)
    checkpoints = Checkpoints(folder.place / "checkpoints", keep=config.checkpoint.keep, flush=folder.flush)
    check_before_start(config)
    resumed = open_run_folder(folder, checkpoints, resume=resume)
    terminal = Terminal()
    if resumed:
        tell_damage(resumed, terminal.message)
        terminal.message(f"resuming from {resumed[0]}")
    cache = cache_folder(config)
    with storage_told(config, checkpoints):
        data = prepare_data(config, cache)
    evaluation_set(data.task, config.evaluation.num_prompts)
    check_demonstrations(config, data.task)
    check_lengths(config, data.task.max_tokens)
    DISCRIMINATORS[config.discriminator.architecture].check(config, data.tokenizer, data.task.max_tokens)
    terminal.message(what_is_learned_from(config, data.task))

    started = time.perf_counter()
    stop = Stop()
    with folder.mirrored(), storage_told(config, checkpoints):
        with ray_session(config), stop_on_signals(stop):
            placement = find_placement(config)
            with terminal.warmups():
                warmups = prepare_warmups(config, data.task, data.tokenizer, cache, terminal.warmup)
            terminal.message(
                f"warm-ups {'from the cache' if warmups.cached else 'made'} in {time.perf_counter() - started:.0f} s"
            )
            try:
                outcome = run_through_losses(
                    config, data, warmups, placement, checkpoints, terminal, resumed, stop=stop
                )
            except TooManyLost as error:
                left = f"{checkpoints.intact()}: go on with --resume {config.run.again}"
                raise RunFailed(f"{error}; {left}") from error
            except (ActorFailure, TimeoutError, TrainingStopped) as error:
                raise RunFailed(str(error)) from error
        with writing(folder.local):
            finish(config, data, warmups, checkpoints, outcome, terminal)
    if outcome.interrupted:
        terminal.message(f"stopped after iteration {outcome.iteration}; go on with --resume {config.run.again}")
        return stop.exit_code
    return 0


def what_is_learned_from(config: Config, task: Task) -> str:
    """The number of demonstrations, and which labels the discriminator reads beside them."""
    read = f"{len(task.demonstrations):,} demonstrations"
    if not config.labels_read:
        return f"learning from {read}, without labels"
    what = "reviews of the other sentiment" if config.task.name == "imdb" else "answers to other prompts"
    return f"learning from {read}, and the discriminator from {what} in {' and '.join(config.labels_read)}"


@contextmanager
def storage_told(config: Config, checkpoints: Checkpoints) -> Iterator[None]:
    """Adds to a ``StorageError`` what is intact and how to go on."""
    try:
        yield
    except StorageError as error:
        if not config.run.folder.is_dir():  # of a run that has not begun: only the cache was written
            raise StorageError(f"{error}: once it can be, start the run again") from error
        remote = isinstance(checkpoints.folder, Remote)  # it may not answer now
        left = "the checkpoints before are intact" if remote else checkpoints.intact()
        raise StorageError(f"{error}; {left}: once it can be, go on with --resume {config.run.again}") from error


def run_through_losses(
    config: Config,
    data: Data,
    warmups: Warmups,
    placement: Placement,
    checkpoints: Checkpoints,
    terminal: Terminal,
    resumed: Resumed | None,
    *,
    stop: Stop,
) -> Outcome:
    """The loop, anew from the last checkpoint whenever an actor was lost that a rollout worker's replacement cannot
    make good."""
    recoveries = Recoveries(config.cluster, terminal.message)
    begun = False
    spent_at = -1
    while True:
        try:
            with (
                adversarial_loop(
                    config,
                    data,
                    warmups,
                    placement,
                    checkpoints,
                    terminal,
                    resumed,
                    recoveries=recoveries,
                    waiting=terminal.waiting,
                ) as loop,
                terminal.training(start=loop.iteration, total=config.run.iterations, first=first_wait(config, loop)),
            ):
                stop.loop, begun = loop, True
                try:
                    return loop.run()
                except (ActorFailure, TooManyLost):
                    loop.rescue()
                    raise
        except ActorFailure as failure:
            stop.loop, reached = None, 0 if stop.loop is None else stop.loop.iteration
            if stop.number or not begun:  # what could not start would not start another time
                raise
            if isinstance(failure, ActorSpent):
                if reached <= spent_at:  # what needs too much memory once needs it each time
                    raise
                spent_at = reached
            resumed = come_back(checkpoints, recoveries, failure)


def come_back(checkpoints: Checkpoints, recoveries: Recoveries, failure: ActorFailure) -> Resumed | None:
    """Where a run goes on that lost its learner or discriminator; None: at its beginning. Raises ``TooManyLost``."""
    if not checkpoints.all():
        recoveries.lost(failure, "there is no checkpoint yet, so the run begins again")
        recoveries.rolled_back()
        return None
    resumed = checkpoints.newest_usable()
    tell_damage(resumed, recoveries.report)
    path, state, _ = resumed
    recoveries.lost(failure, f"the run goes back to iteration {state['iteration']} ({path})")
    recoveries.rolled_back()
    return resumed


def tell_damage(resumed: Resumed, report: Callable[[str], None]) -> None:
    for sentence in resumed[2]:
        report(f"damaged checkpoint passed over: {sentence}")


def with_name(config: Config) -> Config:
    """A run without a name gets one of its own: the task and the time of its start."""
    if config.run.name is not None:
        return config
    name = f"{config.task.label}-{time.strftime('%Y%m%d-%H%M%S')}"
    return config.model_copy(update={"run": config.run.model_copy(update={"name": name})})


def check_before_start(config: Config) -> None:
    """What can be known to fail without loading data or models. Raises ``ValueError``."""
    if config.rollout.traits.vllm:
        require_vllm()
    make_trackers(config.tracking.to)
    check_model_source(config.model.generator, allow_pickle=config.model.allow_pickle)
    check_lengths(config, config.task.prompt_tokens + config.task.response_tokens)
    if config.discriminator.frozen_layers > 0:
        total = num_layers(config.model.generator, trust_remote_code=config.model.trust_remote_code)
        check_frozen_layers(config.discriminator.frozen_layers, total)


def check_lengths(config: Config, asked: int) -> None:
    """Whether the model takes a prompt and its response of ``asked`` tokens together. Raises ``ValueError``."""
    limit = max_positions(config.model.generator, trust_remote_code=config.model.trust_remote_code)
    packed = config.task.name == "imdb" and config.base_warmup.steps != 0
    block_tokens = config.warmup.generator.block_tokens if packed else 0
    if max(asked, block_tokens) > limit:
        blocks = f" and warmup.generator.block_tokens = {block_tokens}" if packed else ""
        raise ValueError(
            f"model.generator={config.model.generator} takes {limit} tokens, but task.prompt_tokens + "
            f"task.response_tokens = {asked}{blocks}: lower them to at most {limit}, or take another model"
        )
    if config.model.generator == TINY_GPT2 and packed and config.warmup.generator.block_tokens < asked:
        raise ValueError(
            f"warmup.generator.block_tokens={config.warmup.generator.block_tokens} leaves positions untrained that "
            f"task.prompt_tokens + task.response_tokens = {asked} need: raise it to at least {asked}"
        )


def open_run_folder(folder: RunFolder, checkpoints: Checkpoints, *, resume: bool) -> Resumed | None:
    """The checkpoint to resume from, or None for a new run. Raises ``ValueError`` where the folder does not fit."""
    exists = folder.exists()
    if resume:
        if not exists:
            raise ValueError(
                f"nothing to resume: {folder.shown} does not exist (run.root and run.name say where to look)"
            )
        folder.fetch()
        return checkpoints.newest_usable()
    if exists:
        raise ValueError(f"{folder.shown} exists: add --resume to go on with that run, or choose another run.name")
    folder.fetch()
    return None


def cache_folder(config: Config) -> Path:
    return Path(config.warmup.cache).expanduser().absolute() if config.warmup.cache else user_cache_path("rlgaf_ray")


def prepare_data(config: Config, cache: Path) -> Data:
    """The task and its tokenizer; the built-in model's tokenizer is trained on the warm-up's part alone."""
    source = load_source(config.task, base=config.base_warmup.steps != 0)
    if config.model.generator == FILM_REVIEWS and isinstance(source, RowSource):
        refuse_base_reviews(source.texts)
    if config.model.generator in FROM_SCRATCH:
        texts = source.warmup_texts
        path = cache / f"tokenizer-{content_hash([str(FROM_SCRATCH_VOCABULARY), *texts])[:32]}.json"
        if not path.is_file():
            bpe = train_bpe(texts, FROM_SCRATCH_VOCABULARY)
            write_atomically(path, lambda temporary: bpe.save(str(temporary)))
        tokenizer: PreTrainedTokenizerBase = wrap_bpe(Tokenizer.from_file(str(path)))
    else:
        tokenizer = load_tokenizer(config.model.generator, trust_remote_code=config.model.trust_remote_code)
    return Data(source.tokenized(tokenizer, cache), tokenizer)


def prepare_evaluator(
    config: Config,
    data: Data,
    cache: Path,
    num_prompts: int | None = None,
    part: EvaluationPart = "validation",
    report: Callable[[str], None] = print,
) -> Evaluator:
    """Measures the first ``num_prompts`` (default: ``evaluation.num_prompts``) of the part.

    ``report`` gets one line where there are no sentence embeddings.
    """
    encode = load_encode(cache) if config.evaluation.embeddings else None
    if encode is None and config.evaluation.embeddings:
        report(MISSING)
    count = num_prompts or config.evaluation.num_prompts
    real = evaluation_set(data.task, count, part)
    real_texts = decode([data.task.evaluated_ids(item) for item in real], data.tokenizer)
    measure: Measure
    match data.task:
        case ImdbTask() as task:
            texts, labels = task.judge_texts(part)
            judge = prepare_judge(texts, labels, cache)
            second = None if encode is None else prepare_embedding_judge(encode, texts, labels, cache)
            measure = SentimentMeasure(judge, real_texts, task.asked_positive(part)[:count], second)
        case PairTask() as task:
            pairs = task.evaluation_pairs(part)[:count]
            references, contexts = [pair.references for pair in pairs], [pair.context for pair in pairs]
            no_answer = config.task.squad.no_answer if config.task.name == "squad" else None
            measure = AnswerMeasure(references, contexts, no_answer=no_answer)
        case task:
            raise AssertionError(f"no measure for {task}")
    return Evaluator(
        measure,
        [item.response_ids for item in real],
        real_texts,
        demonstrations=[item.response_ids for item in data.task.demonstrations],
        encode=encode,
    )


def write_run_files(config: Config, data: Data) -> None:
    """The resolved config, and what the data were."""
    folder = config.run.folder
    described = {"splits_sha256": data.task.checksum, "task": public_values(config.task.model_dump(mode="json"))}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / "config.yaml", dump_config(config))
        replace_text(folder / "data.json", json.dumps(described))


def finish(
    config: Config, data: Data, warmups: Warmups, checkpoints: Checkpoints, outcome: Outcome, terminal: Terminal
) -> None:
    """Export both models as plain Hugging Face folders, write the samples, show the result.

    With ``generator.average_decay`` the generator is its moving average, which was evaluated; checkpoints hold both.
    """
    folder, place = config.run.folder, RunFolder(config.run).place
    latest = checkpoints.named("latest")
    if latest is not None:
        generator = "learner/average" if config.generator.average_decay > 0 else "learner/generator"
        for source, target in ((generator, "generator"), ("discriminator", "discriminator")):
            copy_tree(latest / source, place / target, without=("optimizer.*", "replay.*", ADAPTERS, f"{CHECKSUMS}*"))
            data.tokenizer.save_pretrained(folder / target)
        if config.model.lora.rank > 0:
            bases = {"generator": warmups.generator, "discriminator": warmups.discriminator}
            export_merged(config, latest, folder, **bases, pad_token_id=data.tokenizer.pad_token_id)
    write_samples(folder / "samples.md", outcome.samples_before, outcome.samples_after, outcome.iteration)
    save_samples(folder / SAMPLES, outcome.samples_before, outcome.samples_after)
    checkpoints.flush()
    terminal.result(outcome, folder=config.run.shown)


@contextmanager
def adversarial_loop(
    config: Config,
    data: Data,
    warmups: Warmups,
    placement: Placement,
    checkpoints: Checkpoints,
    display: Display,
    resumed: Resumed | None,
    group: PlacementGroup | None = None,
    recoveries: Recoveries | None = None,
    waiting: Waiting = lambda what: nullcontext(),
) -> Iterator[AdversarialLoop]:
    """The loop with its actors and its run folder, ready to run; both are closed at the end of the block.

    ``waiting`` shows what each slow step waits for.
    """
    with waiting(f"starting {actors_of(config, placement)}"):
        roles = RayRoles(
            warmups.generator,
            warmups.discriminator,
            config,
            placement,
            max_tokens=data.task.max_tokens,
            pad_token_id=data.tokenizer.pad_token_id,
            base_folder=warmups.base,
            group=group,
            recoveries=recoveries,
        )
    try:
        display.message(str(roles.transfer))
        with waiting("preparing the judges" if isinstance(data.task, ImdbTask) else "preparing the evaluation"):
            evaluator = prepare_evaluator(config, data, cache_folder(config), report=display.message)
        start = resumed[1]["iteration"] if resumed else 0
        write_run_files(config, data)
        with open_trackers(config, config.run.folder, start=start, report=display.message) as trackers:
            if warmups.contrast is not None:
                data.task.contrast = load_contrast(warmups.contrast, data.task.demonstrations)
            loop = AdversarialLoop(config, roles, data.task, data.tokenizer, evaluator, trackers, checkpoints, display)
            if resumed:
                with waiting(f"loading iteration {start} into the actors"):
                    loop.resume(resumed[0], resumed[1])
            yield loop
    finally:
        roles.close()


def actors_of(config: Config, placement: Placement) -> str:
    """The actors of a run in words: "2 rollout workers (vllm), the discriminator and the learner"."""
    num_workers = len(placement.rollout_bundles)
    groups = [
        f"the {name}" if len(bundles) == 1 else f"{len(bundles)} ranks of the {name}"
        for name, bundles in (
            ("discriminator", placement.discriminator_bundles),
            ("learner", placement.learner_bundles),
        )
    ]
    workers = f"{num_workers} rollout worker{'s' if num_workers > 1 else ''} ({config.rollout.engine})"
    return f"{workers}, {' and '.join(groups)}"


def first_wait(config: Config, loop: AdversarialLoop) -> str:
    """What the loop does before its first row."""
    if loop.iteration > 0:
        return f"iteration {loop.iteration + 1}"
    evaluation = f"evaluating the start on {config.evaluation.num_prompts} prompts"
    updates = config.discriminator_warmup_updates
    return (
        f"warming up the discriminator with {updates} updates on rollouts, then {evaluation}" if updates else evaluation
    )


class Stop:
    """A signal's wish to end: after the iteration under way, with a checkpoint; at once where no loop runs."""

    def __init__(self) -> None:
        self.loop: AdversarialLoop | None = None
        self.number = 0

    @property
    def exit_code(self) -> int:
        return SIGNAL_EXIT_OFFSET + self.number

    def __call__(self, number: int) -> None:
        self.number = number
        if self.loop is None:
            sys.exit(self.exit_code)
        self.loop.stop_requested = True


@contextmanager
def stop_on_signals(stop_softly: Callable[[int], None]) -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM asks for an end with a checkpoint written; a second one ends at once.

    ``stop_softly`` is told the signal's number.
    """
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        if received:
            os._exit(SIGNAL_EXIT_OFFSET + number)
        received.append(number)
        stop_softly(number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    except SystemExit:
        if received:  # a wait in Ray makes 1 of every exit code
            raise SystemExit(SIGNAL_EXIT_OFFSET + received[0]) from None
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
