"""The typed config tree and its loader. Imports neither torch nor ray."""

from rlgaf_ray.config.load import ConfigError, dump_config, load_config, load_run_config, with_values
from rlgaf_ray.config.schema import Config

__all__ = ["Config", "ConfigError", "dump_config", "load_config", "load_run_config", "with_values"]
