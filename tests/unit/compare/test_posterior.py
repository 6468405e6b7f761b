"""The SFT model's posterior of a prompt, against likelihoods from plain forward passes."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from rlgaf_ray.compare.posterior import Posterior
from rlgaf_ray.config import load_config
from rlgaf_ray.data.task import Task
from rlgaf_ray.errors import UserError
from rlgaf_ray.models.folder import save_network
from rlgaf_ray.models.generator import build_tiny_gpt2, load_generator
from rlgaf_ray.training.distributed import SINGLE_PROCESS
from rlgaf_ray.types import Demonstration


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generator")
    save_network(build_tiny_gpt2(vocab_size=12, end_of_text_id=0, seed=0), folder)
    return folder


class Small:
    """Demonstrations of these prompts."""

    negative_prompts = Task.negative_prompts

    def __init__(self, *prompts: np.ndarray) -> None:
        self.demonstrations = [Demonstration(prompt, ids(7)) for prompt in prompts]


def judge(folder: Path, *prompts: np.ndarray) -> Posterior:
    config = load_config(None, ["warmup.sft.contrastive_prompts=3", "learner.micro_batch_size=2"])
    task = cast(Task, Small(*prompts))
    return Posterior(folder, task, config, pad_token_id=0, device="cpu", group=SINGLE_PROCESS)


def likelihood(model: torch.nn.Module, prompt: np.ndarray, response: np.ndarray) -> float:
    tokens = torch.from_numpy(np.concatenate([prompt, response])).long()
    with torch.no_grad():
        logprobs = model(tokens[None], use_cache=False).logits[0].log_softmax(-1)
    return sum(float(logprobs[len(prompt) + row - 1, token]) for row, token in enumerate(response))


def test_the_score_is_the_log_odds_of_the_posterior_among_the_drawn_prompts(generator: Path) -> None:
    one, other = ids(3, 4), ids(9)
    items = [Demonstration(one, ids(5, 6, 2)), Demonstration(other, ids(5, 6)), Demonstration(one, ids(8))]
    scores, version = judge(generator, one, other).token_scores(items)
    model = load_generator(generator)
    assert version == 0 and len(scores) == 6
    ends = [2, 4, 5]
    assert not np.delete(scores, ends).any()
    for item, end in zip(items, ends, strict=True):
        rival = other if item.prompt_ids is one else one
        own, wrong = (likelihood(model, prompt, item.response_ids) for prompt in (item.prompt_ids, rival))
        assert scores[end] == pytest.approx(own - wrong, abs=1e-4)


def test_a_single_prompt_is_refused(generator: Path) -> None:
    with pytest.raises(UserError, match="have the same prompt"):
        judge(generator, ids(3), ids(3)).token_scores([Demonstration(ids(3), ids(5))])
