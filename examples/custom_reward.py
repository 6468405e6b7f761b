"""A reward function beside the discriminator's reward. It has the signature of TRL's reward functions.

python examples/custom_reward.py --iterations 20
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import rlgaf_ray as rl


def distinct_words(completions: list[str], **columns: Any) -> list[float]:
    """The share of words that the response has not used before; 1 for a response that never repeats itself."""
    words = [text.lower().split() for text in completions]
    return [len(set(each)) / max(1, len(each)) for each in words]


class Progress(rl.Callback):
    """Prints both rewards after each iteration."""

    def on_iteration(self, iteration: int, metrics: dict[str, float]) -> None:
        if iteration > 0:  # iteration 0 is the evaluation before training
            discriminator, words = metrics["reward/discriminator"], metrics["reward/distinct_words"]
            print(f"iteration {iteration}: discriminator {discriminator:+.3f}, distinct words {words:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="other keys of the config")
    arguments = parser.parse_args()

    small = Path(__file__).with_name("small.yaml")
    config = rl.load_config(small, [f"run.iterations={arguments.iterations}", *arguments.overrides])
    # The reward of a response is 1.0 x the discriminator's logit + 2.0 x the share of distinct words.
    weights = {"discriminator": 1.0, distinct_words: 2.0}
    outcome = rl.train(config, rewards=weights, callbacks=[Progress()], roles="local")
    before, after = outcome.samples[0]
    print(f"before: {before}\nafter:  {after}\nrun folder: {outcome.folder}")


if __name__ == "__main__":
    main()
