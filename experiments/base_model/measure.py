"""Nats a byte on the validation reviews, and the first samples, of a base model.

    python experiments/base_model/measure.py MODEL [--samples 10]

Samples continue the first prompts of the validation part (three tokens) at temperature 1; none is left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from train import PROMPT_TOKENS, RESPONSE_TOKENS, nats

from rlgaf_ray.config.task import ImdbSettings
from rlgaf_ray.data.reviews import load_reviews
from rlgaf_ray.data.splits import split_reviews
from rlgaf_ray.models.generator import load_generator
from rlgaf_ray.models.tokenizer import load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, or film-reviews")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=PROMPT_TOKENS + RESPONSE_TOKENS, help="of a sample")
    arguments = parser.parse_args()
    source = arguments.model if not Path(arguments.model).is_dir() else Path(arguments.model)
    tokenizer, model = load_tokenizer(source), load_generator(source)
    reviews = load_reviews(ImdbSettings())
    rows = split_reviews(reviews, ImdbSettings().splits).validation
    texts = tokenizer([reviews.texts[row] for row in rows], add_special_tokens=False)["input_ids"]
    for name, value in nats(model, tokenizer, texts).items():
        print(f"{name}: {value:.4f}")
    torch.manual_seed(0)
    prompts = torch.tensor([ids[:PROMPT_TOKENS] for ids in texts[: arguments.samples]])
    generate: Any = model.generate
    sampled = generate(
        prompts, do_sample=True, top_k=0, max_length=arguments.tokens, attention_mask=torch.ones_like(prompts)
    )
    for number, row in enumerate(sampled, start=1):
        print(f"{number}. {tokenizer.decode(row, skip_special_tokens=True)}")


if __name__ == "__main__":
    main()
