"""A task with its own measure: sums of two numbers, in words.

python examples/custom_task.py --iterations 20
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

import rlgaf_ray as rl
from rlgaf_ray.types import Demonstration, EvaluationPart

ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
ONES += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["", "", "twenty", "thirty", "forty", "fifty"]
PAIRS = np.random.default_rng(0).permutation([(first, second) for first in range(30) for second in range(30)])
PARTS = {"validation": PAIRS[:100], "test": PAIRS[100:200], "train": PAIRS[200:]}


def spelled(number: int) -> str:
    """A number below 60 in words."""
    if number < 20:
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens] + (f" {ONES[ones]}" if ones else "")


class Correct(rl.Measure):
    """The share of right sums, and of responses that are a number at all."""

    numbers = frozenset(spelled(number) for number in range(60))

    def __init__(self, pairs: np.ndarray) -> None:
        self.right = [spelled(first + second) for first, second in pairs]

    def __call__(self, texts: Sequence[str]) -> dict[str, float]:
        answers = [text.strip() for text in texts]
        return {
            "eval/right": float(np.mean([answer == right for answer, right in zip(answers, self.right, strict=True)])),
            "eval/numbers": float(np.mean([answer in self.numbers for answer in answers])),
        }


class SumTask(rl.Task):
    """The task as token ids: demonstrations to learn from, and the parts to evaluate on."""

    checksum = hashlib.sha256(b"sums of numbers below 30").hexdigest()
    max_tokens = 32

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.contrast = []  # no answers of an unwanted kind
        self.demonstrations = self.pairs(PARTS["train"])

    def pairs(self, numbers: np.ndarray) -> list[Demonstration]:
        return [self.pair(int(first), int(second)) for first, second in numbers]

    def pair(self, first: int, second: int) -> Demonstration:
        prompt = self.tokenizer.encode(f"{spelled(first)} plus {spelled(second)} is", add_special_tokens=False)
        response = self.tokenizer.encode(f" {spelled(first + second)}", add_special_tokens=False)
        end = self.tokenizer.eos_token_id
        return Demonstration(np.array(prompt, np.int32), np.array([*response, end], np.int32))

    def evaluation(self, part: EvaluationPart) -> list[Demonstration]:
        return self.pairs(PARTS[part])

    def measure(self, part: EvaluationPart, num_prompts: int) -> Correct:
        return Correct(PARTS[part][:num_prompts])


class Sums(rl.TaskSource):
    """Makes the task once the tokenizer is known. The best checkpoint is the one with the most right sums."""

    quality = "eval/right"

    def tokenized(self, tokenizer: PreTrainedTokenizerBase, cache_folder: Path) -> SumTask:
        return SumTask(tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="other keys of the config")
    arguments = parser.parse_args()

    lengths = ["task.prompt_tokens=20", "task.response_tokens=12", "warmup.sft.steps=100"]
    small = Path(__file__).with_name("small.yaml")
    config = rl.load_config(small, [*lengths, f"run.iterations={arguments.iterations}", *arguments.overrides])
    outcome = rl.train(config, task=Sums(), roles="local")
    for name, metrics in (("SFT", outcome.first), ("adversarial", outcome.last)):
        print(f"{name}: {metrics['eval/right']:.0%} right, {metrics['eval/numbers']:.0%} are numbers")
    print(f"run folder: {outcome.folder}")


if __name__ == "__main__":
    main()
