"""Trials from warm-up to measurement: reproducible per seed, different across replicates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rlgaf_ray.compare.decoding import Decoding
from rlgaf_ray.compare.shared import keys_read
from rlgaf_ray.compare.trial import Trial, run_trial
from rlgaf_ray.config import load_config
from rlgaf_ray.config.compare import MethodName
from rlgaf_ray.config.warmup import SftWarmup
from rlgaf_ray.training.precision import processor_type
from rlgaf_ray.training.warmup import Training
from tests.unit.compare.small import SMALL


def run(folder: Path, cache: Path, *overrides: str, name: MethodName = "rlgaf", replicate: int = 0) -> Trial:
    """Run a trial and drop its timings."""
    more = [f"warmup.cache={cache}", "compare.top_p=[0.8]", "compare.min_p=[0.2]", *overrides]
    config = load_config(None, [*SMALL, *more])
    return replace(run_trial(config, name, replicate, folder), seconds={})


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trial, Path]:
    cache = tmp_path_factory.mktemp("cache")
    return run(tmp_path_factory.mktemp("first"), cache), cache


def test_the_same_seeds_give_the_same_trial(first: tuple[Trial, Path], tmp_path: Path) -> None:
    """The second trial has its own empty cache."""
    assert run(tmp_path / "again", tmp_path / "cache") == first[0]


def test_another_replicate_has_other_seeds_and_demonstrations(first: tuple[Trial, Path], tmp_path: Path) -> None:
    other = run(tmp_path / "other", first[1], replicate=1)
    assert other.parts.keys() == first[0].parts.keys()
    assert other.parts != first[0].parts


def test_every_decoding_is_measured_on_both_parts(first: tuple[Trial, Path]) -> None:
    trial = first[0]
    for part, prompts in (("validation", 20), ("test", 30)):
        found = {each.decoding: each for each in trial.parts[part]}  # type: ignore[index]
        assert [*found] == [Decoding(1.0), Decoding(0.5), Decoding(top_p=0.8), Decoding(min_p=0.2)]
        entropies = {decoding: each.entropy or 0.0 for decoding, each in found.items()}
        assert all(entropies[each] < entropies[Decoding()] for each in found if each != Decoding())
        for each in found.values():
            assert each.each is not None and len(each.each) == prompts
            assert each.quality == pytest.approx(sum(each.each) / prompts) == each.metrics["eval/success"]
            assert 0 <= each.metrics["eval/distinct_successes"] <= 2  # answers to a prompt


def test_supervised_methods_keep_the_sft_steps_with_the_best_validation_quality(
    first: tuple[Trial, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """150 steps continue from the first one, and give the same model as 150 in one piece."""

    def best(trial: Trial) -> float:
        return max(each.quality for each in trial.parts["validation"])

    starts: list[int] = []

    def steps(self: Training, start: int = 0) -> Iterator[tuple[int, float]]:
        if isinstance(self.settings, SftWarmup):
            starts.append(start)
        return one_by_one(self, start)

    one_by_one = Training.steps
    monkeypatch.setattr(Training, "steps", steps)
    same = ["warmup.sft.learning_rate=5.0e-3", "task.bridge.validation=200"]  # enough prompts to tell them apart
    both = run(tmp_path / "both", first[1], *same, "compare.sft_steps=[150, 1]", name="sft")
    assert starts == [0, 1]
    cache = tmp_path / "cache"
    alone = [run(tmp_path / f"{steps}", cache, *same, f"warmup.sft.steps={steps}", name="sft") for steps in (1, 150)]
    assert abs(best(alone[0]) - best(alone[1])) > 0.05
    assert both == max(alone, key=best)
    assert run(tmp_path / "rl", first[1], "compare.sft_steps=[1, 150]").sft_steps == 5  # for supervised methods only


def shared_warmups(root: Path) -> set[Path]:
    return {path for path in (root / "warmups").iterdir() if path.is_dir()}


def test_methods_that_start_with_the_same_discriminator_share_its_warm_up(
    first: tuple[Trial, Path], tmp_path: Path
) -> None:
    """They give the same results with another method's warm-up as with their own."""
    root = tmp_path / "shared"
    assert run(root, first[1]) == first[0]
    before = shared_warmups(root)
    assert len(before) == 1
    for name in ("best_of_4", "rejection", "frozen"):
        assert run(root, first[1], name=name) == run(tmp_path / name, first[1], name=name)
    assert shared_warmups(root) == before


@pytest.mark.parametrize(
    "key",
    [
        "discriminator.learning_rate=2.0e-3",
        "discriminator.held_out=4",
        "rollout.free_prompts=0.5",
        "run.seed=5",
    ],
)
def test_a_warm_up_that_reads_other_values_is_another_one(key: str) -> None:
    config = load_config(None, SMALL)
    assert keys_read(load_config(None, [*SMALL, key])) != keys_read(config)


def test_the_posterior_scores_instead_of_a_discriminator(first: tuple[Trial, Path], tmp_path: Path) -> None:
    trained = run(tmp_path / "trained", first[1], name="posterior")
    chosen = run(tmp_path / "chosen", first[1], name="best_of_16_posterior")
    assert (trained.rollouts, trained.candidates, chosen.rollouts, chosen.candidates) == (32, 1, 0, 16)
    assert trained.processor == chosen.processor == processor_type()
    sft = run(tmp_path / "sft", first[1], name="sft")
    assert trained.parts["test"] != sft.parts["test"]


def test_prompts_are_scored_only_by_the_quality_itself(first: tuple[Trial, Path], tmp_path: Path) -> None:
    """The bridge scores single walks by success, not by their end."""
    other = run(tmp_path / "other", first[1], "evaluation.best_metric=eval/arrives", "task.bridge.legal_only=false")
    assert all(each.each is not None for each in first[0].parts["test"])
    assert all(each.quality == each.metrics["eval/arrives"] for each in other.parts["test"])
    assert any(each.each is None for each in other.parts["test"])


def test_the_base_model_is_measured_without_sft(first: tuple[Trial, Path], tmp_path: Path) -> None:
    base = run(tmp_path / "base", first[1], "compare.sft_steps=[5, 50]", name="base")
    assert (base.sft_steps, base.rollouts, base.candidates) == (0, 0, 1)
    assert base == run(tmp_path / "again", first[1], "task.max_demonstrations=9", name="base")
