"""A discriminator without a network: logistic regression on the tokens of a response.

python examples/custom_discriminator.py --iterations 20
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import rlgaf_ray as rl
from rlgaf_ray.config.discriminator import BatchNeeds
from rlgaf_ray.data.lengths import Response
from rlgaf_ray.data.storage import Place
from rlgaf_ray.training.distributed import Group
from rlgaf_ray.types import Demonstration, Metrics, Rollout

SIZE = 4096  # token ids share a weight where the vocabulary is larger
LEARNING_RATE = 200.0  # each token of a response has 1/R of its gradient


class BagOfTokens(rl.Discriminator):
    """The logit of a response is the mean weight of its tokens, whatever their order and the prompt."""

    needs = BatchNeeds()  # beside the rollouts, an update gets ``discriminator.batch_size`` demonstrations

    def __init__(self, folder: Path, config: rl.Config, *, pad_token_id: int, device: str, group: Group) -> None:
        self.group = group
        self.weights_of_tokens = np.zeros(SIZE)
        self.version = 0  # updates so far
        self.learning_rate = LEARNING_RATE

    def token_scores(self, items: Sequence[Response]) -> tuple[np.ndarray, int]:
        parts = [self.weights_of_tokens[item.response_ids % SIZE] / len(item.response_ids) for item in items]
        return np.concatenate(parts).astype(np.float32), self.version

    def update(
        self, real: Sequence[Demonstration], fake: Sequence[Rollout], contrast: Sequence[Demonstration] = ()
    ) -> Metrics:
        """One step of gradient descent on the cross-entropy of real and generated responses."""
        gradient = np.zeros(SIZE)
        losses, hits = [], []
        for items, label in ((real, 1.0), (fake, 0.0)):
            for item in items:
                tokens = item.response_ids % SIZE
                logit = self.weights_of_tokens[tokens].mean()
                losses.append(np.logaddexp(0.0, logit) - label * logit)
                hits.append((logit > 0) == (label == 1))
                probability = 1.0 / (1.0 + np.exp(-logit))
                np.add.at(gradient, tokens, (probability - label) / len(tokens) / (2 * len(items)))
        self.weights_of_tokens -= self.learning_rate * gradient
        self.version += 1
        return {"discriminator/loss": float(np.mean(losses)), "discriminator/accuracy": float(np.mean(hits))}

    def weights(self) -> None:
        return None  # the learner cannot back-propagate through it

    def adjust(self, *, learning_rate_factor: float, refresh: bool = False) -> None:
        self.learning_rate = LEARNING_RATE * learning_rate_factor

    def save(self, folder: Place) -> None:
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights.json").write_text(json.dumps(self.weights_of_tokens.tolist()), encoding="utf-8")

    def load(self, folder: Place, *, version: int) -> None:
        self.weights_of_tokens = np.array(json.loads((folder / "weights.json").read_text(encoding="utf-8")))
        self.version = version


class Progress(rl.Callback):
    """Prints how well the discriminator tells demonstrations from rollouts."""

    def on_iteration(self, iteration: int, metrics: Metrics) -> None:
        if iteration > 0:
            accuracy, reward = metrics["discriminator/accuracy"], metrics["reward/mean"]
            print(f"iteration {iteration}: discriminator accuracy {accuracy:.2f}, mean reward {reward:+.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="other keys of the config")
    arguments = parser.parse_args()

    small = Path(__file__).with_name("small.yaml")
    config = rl.load_config(small, [f"run.iterations={arguments.iterations}", *arguments.overrides])
    outcome = rl.train(config, discriminator=BagOfTokens, callbacks=[Progress()], roles="local")
    print(f"run folder: {outcome.folder}")


if __name__ == "__main__":
    main()
