"""SFT with a label token: its rows, and guided sampling against forward passes without a cache."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rlgaf_ray.compare.configs import method_config
from rlgaf_ray.compare.guidance import GuidedEngine, Labels, check_labels, guided_logits
from rlgaf_ray.compare.trial import run_trial
from rlgaf_ray.config import load_config
from rlgaf_ray.engines.transformers import TransformersEngine
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.folder import save_network
from rlgaf_ray.models.generator import build_tiny_gpt2, load_generator
from rlgaf_ray.run.preparation import cache_folder, prepare_data
from rlgaf_ray.testing import FakeTask
from rlgaf_ray.training.dpo import DirectPreference, rows_of
from rlgaf_ray.types import Demonstration, Metrics, Prompt, SamplingSettings

BEGIN = 5
SAMPLING = SamplingSettings(max_new_tokens=4, temperature=0.7, samples_per_prompt=3, stop_at_end_of_text=True)


class Tokenizer:
    """Encodes the labels as two tokens and one."""

    bos_token_id = BEGIN

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return {"Good: ": [1, 2], "Bad: ": [3]}[text]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generator")
    save_network(build_tiny_gpt2(vocab_size=12, end_of_text_id=0, seed=0), folder)
    return folder


@pytest.fixture
def labels() -> Labels:
    return Labels(cast(PreTrainedTokenizerBase, Tokenizer()))


def prompts() -> list[Prompt]:
    return [Prompt(row, np.array(ids, np.int32)) for row, ids in enumerate([[BEGIN, 7], [8], [9, 10, 11]])]


def engine(generator: Path, labels: Labels, guidance: float) -> GuidedEngine:
    return GuidedEngine(generator, labels, guidance, load_config(None))


def test_demonstrations_and_negatives_have_their_labels(labels: Labels) -> None:
    rows = labels.rows(FakeTask([7, BEGIN], contrast=[8]))
    assert [row.prompt_ids.tolist() for row in rows] == [[1, 2, 7], [BEGIN, 1, 2], [3, 8]]
    assert [row.response_ids.tolist() for row in rows] == [[107], [100 + BEGIN], [108]]
    with pytest.raises(UserError, match="needs labelled negatives, and the task has none"):
        labels.rows(FakeTask([7], contrast=()))


def test_labels_that_the_tokenizer_does_not_tell_apart_are_refused() -> None:
    class Unknown(Tokenizer):
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [0]

    with pytest.raises(UserError, match="encodes the labels 'Good: ' and 'Bad: ' alike"):
        Labels(cast(PreTrainedTokenizerBase, Unknown()))


def test_guidance_by_hand() -> None:
    wanted = torch.tensor([[math.log(0.5), math.log(0.5), -math.inf]])
    unwanted = torch.tensor([[math.log(0.25), math.log(0.5), math.log(0.25)]])
    probabilities = guided_logits(wanted, unwanted, guidance=2.0).softmax(-1)
    # 0.25 (0.5 / 0.25)^2 = 1 and 0.5 (0.5 / 0.5)^2 = 0.5
    torch.testing.assert_close(probabilities, torch.tensor([[2 / 3, 1 / 3, 0.0]]))


def test_without_guidance_it_samples_from_the_wanted_label(generator: Path, labels: Labels) -> None:
    seeds = list(range(9))
    found = engine(generator, labels, 1.0).generate(prompts(), SAMPLING, seeds=seeds)
    labelled = [Prompt(each.prompt_id, labels.before(labels.wanted, each.token_ids)) for each in prompts()]
    expected = TransformersEngine(generator).generate(labelled, SAMPLING, seeds=seeds)
    for ours, theirs, prompt in zip(found, expected, np.repeat([0, 1, 2], 3), strict=True):
        assert ours.response_ids.tolist() == theirs.response_ids.tolist()
        assert ours.prompt_ids.tolist() == prompts()[prompt].token_ids.tolist()  # without the label
        np.testing.assert_allclose(ours.behaviour_logprobs, theirs.behaviour_logprobs, atol=1e-5)


def test_guided_log_probs_are_those_of_passes_without_a_cache(generator: Path, labels: Labels) -> None:
    model = load_generator(generator)

    def logits(label: np.ndarray, prompt: np.ndarray, before: np.ndarray) -> torch.Tensor:
        tokens = torch.from_numpy(np.concatenate([labels.before(label, prompt), before])).long()
        with torch.no_grad():
            return model(tokens[None], use_cache=False).logits[:, -1]

    found = engine(generator, labels, 2.5).generate(prompts(), SAMPLING, seeds=list(range(9)))
    for rollout in found:
        for step, token in enumerate(rollout.response_ids.tolist()):
            pair = [
                logits(label, rollout.prompt_ids, rollout.response_ids[:step])
                for label in (labels.wanted, labels.unwanted)
            ]
            expected = (guided_logits(*pair, guidance=2.5) / 0.7).log_softmax(-1)[0, token]
            assert rollout.behaviour_logprobs[step] == pytest.approx(float(expected), abs=1e-4)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a task with rejected answers."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = [
        {"prompt": f"number {row}", "response": f"{row} is good", "rejected": f"{row} is bad"} for row in range(200)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return [
        "run.iterations=2",
        "model.generator=tiny-gpt2",
        "task.name=jsonl",
        f"task.jsonl.path={folder / 'rows.jsonl'}",
        "task.prompt_tokens=12",
        "task.response_tokens=8",
        "warmup.generator.steps=10",
        "warmup.sft={steps: 10, batch_size: 16}",
        "warmup.discriminator.steps=2",
        f"warmup.cache={folder / 'cache'}",
        "rollout={engine: transformers, batch_size: 8, samples_per_prompt: 2}",
        "discriminator={batch_size: 8, frozen_layers: 0, held_out: 0}",
        "guard.action=warn",
        "evaluation={num_prompts: 10, every: 0, quick_every: 0, embeddings: false}",
        "tracking.to=[]",
        "compare={methods: [sft], replicates: 1, temperatures: [1.0], samples: 1}",
    ]


def test_the_best_guidance_on_validation_prompts_is_reported(labelled: list[str], tmp_path: Path) -> None:
    def best(guidance: str) -> tuple[float, float | None]:
        config = load_config(None, [*labelled, f"compare.guidance={guidance}"])
        trial = run_trial(config, "label_token", 0, tmp_path / guidance)
        return trial.parts["validation"][0].quality, trial.guidance

    alone = [best("[1.0]"), best("[3.0]")]
    assert best("[1.0, 3.0]") == max(alone, key=lambda found: found[0])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["warmup.sft.contrastive_weight=3"], "its rows have no other prompts for warmup.sft.contrastive_weight=3"),
        (["task.response_tokens=240"], "with a label of .* tokens, .*256"),
    ],
)
def test_what_label_tokens_do_not_work_with_is_refused(
    labelled: list[str], tmp_path: Path, overrides: list[str], expected: str
) -> None:
    config = load_config(None, [*labelled, *overrides])
    with pytest.raises(UserError, match=expected):
        check_labels(config, prepare_data(config, tmp_path))


def test_dpo_prefers_demonstrations_to_rejected_answers(
    labelled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the discriminator's contrast is sampled from the base model."""
    read: list[Demonstration] = []
    update = DirectPreference.update

    def spied(self: DirectPreference, policy: Any, batch: Any, rewards: Any, iteration: int, text: Any) -> Metrics:
        read.extend(rows_of(text))
        return update(self, policy, batch, rewards, iteration, text)

    monkeypatch.setattr(DirectPreference, "update", spied)
    config = load_config(None, labelled)
    assert config.discriminator.contrast_read == "base_model"
    assert run_trial(config, "dpo_labels", 0, tmp_path).rollouts == 16
    data = prepare_data(method_config(config, "dpo_labels", 0), cache_folder(config))
    negatives = {(item.prompt_ids.tobytes(), item.response_ids.tobytes()) for item in data.task.contrast}
    for half in (read[8:16], read[24:]):
        assert {(item.prompt_ids.tobytes(), item.response_ids.tobytes()) for item in half} <= negatives
    assert [item.prompt_ids.tolist() for item in read[:8]] == [item.prompt_ids.tolist() for item in read[8:16]]


def test_the_base_models_likelihood_can_select_among_candidates(labelled: list[str], tmp_path: Path) -> None:
    """With a large coefficient the discriminator does not matter."""

    def answers(coefficient: float, steps: int) -> Metrics:
        keys = [f"reward.base_logprob={coefficient}", f"warmup.discriminator.steps={steps}"]
        config = load_config(None, [*labelled, *keys, "discriminator.learning_rate=1.0e-2"])
        return run_trial(config, "best_of_4", 0, tmp_path / f"{coefficient}-{steps}").parts["test"][0].metrics

    assert answers(1e4, 0) == answers(1e4, 5)
    assert answers(0.0, 0) != answers(0.0, 5)
