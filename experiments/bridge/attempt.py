"""Run one method of ``rlgaf compare`` on one tuning draw of the bridge, with changed settings.

    python experiments/bridge/attempt.py rlgaf 100 warmup.sft.contrastive_weight=3 --label from-contrastive-sft

Settings are chosen by the validation pairs of replicates 100 and above. Results: ``results/tuning.jsonl``.
One process and one thread, without Ray.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import get_args

from transformers.utils import logging

from rlgaf_ray.compare.measuring import Measured
from rlgaf_ray.compare.trial import run_trial
from rlgaf_ray.config import load_config
from rlgaf_ray.config.compare import BuiltInMethod

RESULTS = Path(__file__).parent / "results" / "tuning.jsonl"
TUNING = 100  # the first replicate that settings may be chosen by


def tuning_replicate(text: str) -> int:
    replicate = int(text)
    if replicate < TUNING:
        raise argparse.ArgumentTypeError(f"must be {TUNING} or above: lower ones are for the reported comparison")
    return replicate


def commit() -> str:
    """Return the code's commit, with -dirty if files have changed since."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=RESULTS.parents[1]).stdout.strip()


def shown(measured: Measured) -> list[float | None]:
    """Temperature, success and entropy in nats."""
    return [measured.temperature, measured.quality, measured.entropy]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", help="a built-in method, or a variant that the keys define (compare.variants)")
    parser.add_argument("replicate", type=tuning_replicate)
    parser.add_argument("keys", nargs="*", metavar="key=value")
    parser.add_argument("--label", required=True)
    arguments = parser.parse_intermixed_args()
    logging.set_verbosity_error()
    config = load_config("bridge", arguments.keys)
    if arguments.method not in {*get_args(BuiltInMethod), *config.compare.variants}:
        parser.error(f"there is no method {arguments.method}")
    folder = Path("runs") / "bridge" / arguments.label
    trial = run_trial(config, arguments.method, arguments.replicate, folder)
    line = {
        "label": arguments.label,
        "method": arguments.method,
        "replicate": arguments.replicate,
        "keys": arguments.keys,
        "commit": commit(),
        "validation": [shown(each) for each in trial.parts["validation"]],
        "seconds": trial.seconds,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
