"""Train the built-in base model from nothing and write it as a Hugging Face folder.

    python experiments/base_model/train.py OUT [--epochs 12] [--threads 1]

Reads the part ``base`` of the reviews (rlgaf_ray/data/splits.py) and nothing else; the part ``validation`` measures.
Half of the blocks begin at a review's first token, as rollouts and evaluations do; the others are random windows of
all reviews packed end to end. ``OUT/log.jsonl`` has one line every 50 steps; ``OUT/base_reviews.npy`` has the
fingerprints of what was read, and belongs into ``rlgaf_ray/data``.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from rlgaf_ray.config.task import ImdbSettings
from rlgaf_ray.data.base_reviews import FINGERPRINTS, fingerprint
from rlgaf_ray.data.reviews import load_reviews
from rlgaf_ray.data.splits import split_reviews
from rlgaf_ray.models.tokenizer import train_bpe, wrap_bpe
from rlgaf_ray.training.optimizer import build_optimizer, schedule_factor
from rlgaf_ray.training.precision import autocast, resolve_precision

VOCABULARY, LAYERS, WIDTH, HEADS, POSITIONS = 4096, 5, 192, 3, 128
REPORT_EVERY, VALIDATE_EVERY = 50, 500
PROMPT_TOKENS, RESPONSE_TOKENS = 3, 28  # of the default task: what nats a byte are measured on


def new_model(end_of_text: int, *, dropout: float, seed: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=0.0,  # costs a tenth of the time
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        pad_token_id=end_of_text,
    )
    torch.manual_seed(seed)
    return GPT2LMHeadModel._from_config(config, attn_implementation="eager")


def build_optimizers(model: nn.Module, name: str, *, weight_decay: float) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon (Jordan et al. 2024) for the blocks' matrices with its steps scaled to AdamW's size."""
    if name == "adamw":
        return [build_optimizer(model.parameters(), learning_rate=0.0, betas=(0.9, 0.95), weight_decay=weight_decay)]
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
    chosen = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(hidden, lr=0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        build_optimizer(rest, learning_rate=0.0, betas=(0.9, 0.95), weight_decay=weight_decay),
    ]


class Blocks:
    """Blocks of ``POSITIONS`` tokens: half of each batch begins with a review's first token."""

    def __init__(self, reviews: list[list[int]], end_of_text: int, *, beginnings: float, seed: int) -> None:
        self.stream = np.concatenate([np.array([*ids, end_of_text], np.int32) for ids in reviews])
        starts = np.cumsum([0, *(len(ids) + 1 for ids in reviews)])[:-1]
        self.starts = starts[starts + POSITIONS <= len(self.stream)]
        self.beginnings = beginnings
        self.random = np.random.default_rng(seed)
        self.order = np.empty(0, np.int64)

    def next(self, size: int) -> Tensor:
        num_beginnings = round(size * self.beginnings)
        while len(self.order) < num_beginnings:  # every review once before any comes again
            self.order = np.concatenate([self.order, self.random.permutation(self.starts)])
        first, self.order = self.order[:num_beginnings], self.order[num_beginnings:]
        anywhere = self.random.integers(0, len(self.stream) - POSITIONS + 1, size - num_beginnings)
        rows = np.concatenate([first, anywhere])[:, None] + np.arange(POSITIONS)
        return torch.from_numpy(self.stream[rows]).long()


@torch.no_grad()
def nats(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[list[int]]) -> dict[str, float]:
    """NLL of the default task's responses, and of the first ``POSITIONS`` tokens: nats a token and nats a byte."""
    model.eval()
    measured = {}
    for name, length in (("response", PROMPT_TOKENS + RESPONSE_TOKENS), ("block", POSITIONS)):
        rows = torch.tensor([ids[:length] for ids in texts if len(ids) >= length])
        total = 0.0
        for part in rows.split(256):
            logits = model(part).logits[:, PROMPT_TOKENS - 1 : -1].float()
            total += float(
                nn.functional.cross_entropy(logits.flatten(0, 1), part[:, PROMPT_TOKENS:].flatten(), reduction="sum")
            )
        learned = [str(tokenizer.decode(row)) for row in rows[:, PROMPT_TOKENS:]]
        measured[f"{name}_nats_per_token"] = total / rows[:, PROMPT_TOKENS:].numel()
        measured[f"{name}_nats_per_byte"] = total / sum(len(text.encode()) for text in learned)
    model.train()
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=float, default=12.0, help="passes over the tokens of the base's reviews")
    parser.add_argument("--steps", type=int, help="in place of --epochs")
    parser.add_argument("--batch-size", type=int, default=64, help="blocks")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--beginnings", type=float, default=0.5, help="share of blocks that begin with a review")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)

    reviews = load_reviews(ImdbSettings())
    splits = split_reviews(reviews, ImdbSettings().splits)
    base = [reviews.texts[row] for row in splits.base]
    tokenizer = wrap_bpe(train_bpe(base, VOCABULARY))
    texts = tokenizer(base, add_special_tokens=False)["input_ids"]
    validation = tokenizer([reviews.texts[row] for row in splits.validation], add_special_tokens=False)["input_ids"]
    blocks = Blocks(texts, tokenizer.eos_token_id, beginnings=arguments.beginnings, seed=arguments.seed)
    num_steps = arguments.steps or round(arguments.epochs * len(blocks.stream) / (arguments.batch_size * POSITIONS))

    model = new_model(tokenizer.eos_token_id, dropout=arguments.dropout, seed=arguments.seed)
    device = torch.device("cpu")
    dtype = resolve_precision("auto", device)
    optimizers = build_optimizers(model, arguments.optimizer, weight_decay=arguments.weight_decay)
    np.save(arguments.out / FINGERPRINTS.name, np.sort(np.array([fingerprint(text) for text in base], np.uint64)))
    log = (arguments.out / "log.jsonl").open("w", buffering=1)
    head = {
        "command": {name: str(value) for name, value in vars(arguments).items() if name != "out"},
        "torch": torch.__version__, "dtype": str(dtype), "processor": platform.processor() or platform.machine(),
        "reviews": len(base), "tokens": len(blocks.stream), "steps": num_steps, "splits_sha256": splits.checksum,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }  # fmt: skip
    print(json.dumps(head), file=log)
    started, losses = time.perf_counter(), []
    model.train()
    for step in range(num_steps):
        batch = blocks.next(arguments.batch_size)
        with autocast(dtype, device):
            logits = model(batch[:, :-1], use_cache=False).logits
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        factor = schedule_factor(
            step, num_steps=num_steps, num_warmup_steps=min(100, num_steps // 4), schedule="cosine"
        )
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = arguments.learning_rate * factor
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
        done = step + 1
        last = done == (num_steps)
        if done % REPORT_EVERY == 0 or last:
            row = {"step": done, "loss": sum(losses) / len(losses), "seconds": round(time.perf_counter() - started, 1)}
            losses = []
            if done % VALIDATE_EVERY == 0 or last:
                row |= nats(model, tokenizer, validation)
            print(json.dumps(row), file=log)
            print(json.dumps(row), flush=True)

    for name in ("resid_pdrop", "embd_pdrop"):
        setattr(model.config, name, 0.0)
    model.bfloat16().save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
