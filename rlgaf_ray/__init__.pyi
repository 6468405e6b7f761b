from rlgaf_ray.config import Config as Config
from rlgaf_ray.config import load_config as load_config
from rlgaf_ray.data.task import Measure as Measure
from rlgaf_ray.data.task import Task as Task
from rlgaf_ray.data.task import TaskSource as TaskSource
from rlgaf_ray.errors import UserError as UserError
from rlgaf_ray.loop.callback import Callback as Callback
from rlgaf_ray.loop.outcome import Outcome as Outcome
from rlgaf_ray.loop.reward_functions import RewardFunction as RewardFunction
from rlgaf_ray.run.evaluate import evaluate as evaluate
from rlgaf_ray.run.train import train as train
from rlgaf_ray.tracking.base import Tracker as Tracker
from rlgaf_ray.training.algorithm import Algorithm as Algorithm
from rlgaf_ray.training.discriminator import Discriminator as Discriminator

__version__: str
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
