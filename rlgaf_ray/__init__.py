"""Post-train language models by generative adversarial feedback, on Ray and vLLM.

>>> import rlgaf_ray as rl
>>> outcome = rl.train(rl.load_config("imdb_positive", small=True))
>>> outcome.last["eval/closeness"], outcome.samples, outcome.generator()

The names of ``__all__`` are imported when they are first used: torch and Ray take seconds.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "Algorithm",
    "Callback",
    "Config",
    "Discriminator",
    "Measure",
    "Outcome",
    "RewardFunction",
    "Task",
    "TaskSource",
    "Tracker",
    "UserError",
    "evaluate",
    "load_config",
    "train",
]

_MODULES = {
    "Algorithm": "training.algorithm",
    "Callback": "loop.callback",
    "Config": "config",
    "Discriminator": "training.discriminator",
    "Measure": "data.task",
    "Outcome": "loop.outcome",
    "RewardFunction": "loop.reward_functions",
    "Task": "data.task",
    "TaskSource": "data.task",
    "Tracker": "tracking.base",
    "UserError": "errors",
    "evaluate": "run.evaluate",
    "load_config": "config",
    "train": "run.train",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
