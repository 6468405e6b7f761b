"""The DPO loss against hand-worked numbers and TRL's trainer."""

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlgaf_ray.models.generator import policy_logprobs
from rlgaf_ray.objectives.preference import dpo_loss
from rlgaf_ray.types import SequenceBatch


def test_one_pair_by_hand() -> None:
    """Log ratios 0.5 (chosen) and -1.5 (rejected) with beta 0.1: the margin is 0.2."""
    values = [torch.tensor([value]) for value in (-10.0, -12.0, -10.5, -10.5)]
    loss, metrics = dpo_loss(*values, beta=0.1)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.2)))
    assert metrics["chosen_reward"].item() == pytest.approx(0.05)
    assert metrics["rejected_reward"].item() == pytest.approx(-0.15)
    assert metrics["margin"].item() == pytest.approx(0.2)
    assert metrics["accuracy"].item() == 1.0


def test_the_gradient_matches_the_paper() -> None:
    """Rafailov et al., section 4: beta sigmoid(-margin) times the difference of the log-probs' gradients."""
    chosen, rejected = torch.tensor([-3.0], requires_grad=True), torch.tensor([-4.0], requires_grad=True)
    reference = torch.tensor([-3.5], requires_grad=True)
    loss, _ = dpo_loss(chosen, rejected, reference, reference, beta=0.5)
    loss.sum().backward()
    weight = 0.5 / (1 + math.exp(0.5))
    assert chosen.grad is not None and rejected.grad is not None and reference.grad is None
    assert (chosen.grad.item(), rejected.grad.item()) == pytest.approx((-weight, weight))


def test_large_margins_stay_finite() -> None:
    far = torch.tensor([0.0, -3000.0], requires_grad=True)
    loss, _ = dpo_loss(far, far.flip(0).detach(), torch.zeros(2), torch.zeros(2), beta=1.0)
    assert loss.tolist() == [0.0, 3000.0]
    loss.sum().backward()
    assert far.grad is not None and far.grad.isfinite().all()


def test_loss_and_gradient_match_trl(tmp_path: Path) -> None:
    """TRL's collator, forward pass and loss on responses of unequal lengths."""
    from trl import DPOConfig, DPOTrainer

    words = {word: index for index, word in enumerate(["<pad>", "<eos>", *"abcdefgh"])}
    plain = Tokenizer(WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(words), n_positions=32, n_embd=16, n_layer=1, n_head=2, pad_token_id=0)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    model, reference = GPT2LMHeadModel(config), GPT2LMHeadModel(config)
    rows = [
        {"prompt": "a b c", "chosen": " d e", "rejected": " f g h a b"},
        {"prompt": "h", "chosen": " a a b c", "rejected": " d"},
    ]
    arguments = DPOConfig(
        output_dir=str(tmp_path), beta=0.3, per_device_train_batch_size=2, report_to="none", use_cpu=True, bf16=False
    )
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(model, dict(batch))
    theirs.backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()

    sequences = SequenceBatch(batch["input_ids"], batch["attention_mask"], batch["completion_mask"].bool())
    with torch.no_grad():
        anchors = policy_logprobs(reference, sequences).sum(1)
    loss, _ = dpo_loss(*policy_logprobs(model, sequences).sum(1).chunk(2), *anchors.chunk(2), beta=0.3)
    loss.mean().backward()
    assert loss.mean().item() == pytest.approx(theirs.item(), rel=1e-5)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-4, atol=1e-6)
