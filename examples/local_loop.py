"""The adversarial loop in one file: sample, score, update the generator, update the discriminator.

    python examples/local_loop.py --iterations 20

``rlgaf_ray.train`` runs the same roles and adds evaluation, checkpoints, trackers, the guard and Ray.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

import rlgaf_ray as rl
from rlgaf_ray.actors.warmup import prepare_warmups
from rlgaf_ray.engines.build import sampling_settings
from rlgaf_ray.loop.rollouts import rollout_seeds
from rlgaf_ray.run.preparation import Prepared, cache_folder, prepare_data
from rlgaf_ray.run.session import local_roles
from rlgaf_ray.types import Prompt


def train(config: rl.Config) -> None:
    # Read the data and warm up: SFT for the generator; the discriminator starts from the SFT model.
    cache = cache_folder(config)
    data = prepare_data(config, cache)
    warmups = prepare_warmups(config, data.task, data.tokenizer, cache, lambda stage, progress: None, with_ray=False)
    roles = local_roles(Prepared(config, data, warmups))

    demonstrations = data.task.demonstrations
    random = np.random.default_rng(config.run.seed)
    batch_size = config.rollout.batch_size
    for iteration in range(1, config.run.iterations + 1):
        # 1. Sample several responses to each of a few prompts.
        rows = random.choice(len(demonstrations), config.rollout.prompts_per_iteration, replace=False)
        prompts = [Prompt(int(row), demonstrations[row].prompt_ids) for row in rows]
        seeds = rollout_seeds(config, iteration, batch_size)
        rollouts = roles.generate(prompts, sampling_settings(config), seeds)

        # 2. The discriminator's logit of a response is its reward.
        scored = [replace(item, reward=item.score) for item in roles.score(rollouts)]

        # 3. Policy gradient on these rewards, with the KL to the SFT model in the loss.
        generator = roles.update_generator(scored, iteration=iteration - 1, text=None)()

        # 4. The discriminator learns to tell demonstrations from the rollouts.
        real = [demonstrations[row] for row in random.choice(len(demonstrations), batch_size)]
        discriminator = roles.update_discriminator(real, rollouts, ())()

        # 5. The engine gets the new weights; the next rollouts come from them.
        roles.push_weights(iteration)()
        print(
            f"iteration {iteration}: mean reward {np.mean([item.score for item in scored]):+.3f}, "
            f"KL {generator['generator/kl']:.4f}, discriminator accuracy {discriminator['discriminator/accuracy']:.2f}"
        )

    print(data.tokenizer.decode([*rollouts[0].prompt_ids, *rollouts[0].response_ids]))
    roles.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="other keys of the config")
    arguments = parser.parse_args()

    no_text = "generator.reinforce.demonstration_coefficient=0"  # the generator learns from rewards alone
    small = Path(__file__).with_name("small.yaml")
    train(rl.load_config(small, [no_text, f"run.iterations={arguments.iterations}", *arguments.overrides]))


if __name__ == "__main__":
    main()
