"""The generative critic: its score is the log-odds of its verdict after prompt, response and question."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rlgaf_ray.errors import UserError
from rlgaf_ray.models.generative_critic import GenerativeCritic, encode_question
from rlgaf_ray.models.generator import build_tiny_gpt2, load_generator
from rlgaf_ray.models.tokenizer import train_bpe, wrap_bpe
from rlgaf_ray.types import SequenceBatch

QUESTION = " real?"
VERDICTS = (" yes", " no")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return wrap_bpe(train_bpe(["is it real? yes or no"] * 20, 300))


@pytest.fixture(scope="module")
def folder(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    build_tiny_gpt2(vocab_size=len(tokenizer), end_of_text_id=0, seed=3).save_pretrained(path)
    return path


@pytest.fixture
def critic(folder: Path, tokenizer: PreTrainedTokenizerBase) -> GenerativeCritic:
    return GenerativeCritic.new(folder, tokenizer, question=QUESTION, verdicts=VERDICTS)


ROWS = [[3, 4, 5, 6, 7], [8, 9, 10], [11, 12, 13, 14]]


def ragged() -> SequenceBatch:
    """Prompts of one token, padded with a token other than the model's padding token."""
    present = torch.tensor([[column < len(row) for column in range(5)] for row in ROWS])
    tokens = torch.tensor([row + [77] * (5 - len(row)) for row in ROWS])
    return SequenceBatch(tokens, present.long(), present & (torch.arange(5) > 0))


@torch.no_grad()
def test_the_score_is_the_verdicts_log_odds(
    critic: GenerativeCritic, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Compared with the language model, row by row without padding."""
    plain = load_generator(folder)
    yes, no = (tokenizer.encode(word)[0] for word in VERDICTS)
    expected = []
    for row in ROWS:
        logprobs = plain(torch.tensor([row + tokenizer.encode(QUESTION)])).logits[0, -1].log_softmax(-1)
        expected.append(float(logprobs[yes] - logprobs[no]))
    assert critic(ragged()).tolist() == pytest.approx(expected, abs=1e-5)
    assert critic.added_tokens == len(tokenizer.encode(QUESTION)) + 1


def test_token_logits_are_at_the_last_response_token(critic: GenerativeCritic) -> None:
    parts = critic.token_logits(ragged())
    assert parts.sum(1).tolist() == pytest.approx(critic(ragged()).tolist())
    assert parts.nonzero().tolist() == [[0, 4], [1, 2], [2, 3]]


def test_binary_cross_entropy_equals_cross_entropy_over_verdicts(critic: GenerativeCritic) -> None:
    asked = critic.ask(ragged())
    hidden = critic.network.base_model(input_ids=asked.token_ids, attention_mask=asked.attention_mask).last_hidden_state
    both = critic.network.lm_head(hidden)[:, :, critic.network.config.rlgaf_verdicts]
    ends = asked.attention_mask.sum(1) - 2  # the question's last token, before the verdict
    verdict = both[torch.arange(len(ROWS)), ends]
    labels = torch.tensor([1, 0, 1])  # real, generated, real
    expected = torch.nn.functional.cross_entropy(verdict, 1 - labels)
    found = torch.nn.functional.binary_cross_entropy_with_logits(critic(ragged()), labels.float())
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)


def test_an_exported_critic_keeps_its_question(critic: GenerativeCritic, tmp_path: Path) -> None:
    critic.export(tmp_path)
    assert torch.equal(GenerativeCritic.load(tmp_path)(ragged()), critic(ragged()))


@pytest.mark.parametrize(
    ("question", "verdicts", "expected"),
    [
        ("", VERDICTS, "discriminator.question is empty"),
        (QUESTION, (" yes", " perhaps"), "discriminator.verdicts must be single tokens, but ' perhaps' is 8 tokens"),
        (QUESTION, (" yes", " yes"), "discriminator.verdicts are both ' yes'"),
    ],
)
def test_invalid_questions_and_verdicts_raise(
    tokenizer: PreTrainedTokenizerBase, question: str, verdicts: tuple[str, str], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        encode_question(tokenizer, question, verdicts)
