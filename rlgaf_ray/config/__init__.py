"""The typed config tree and its loader. Imports neither torch nor ray, and pydantic only when a name is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlgaf_ray.config.compose import ConfigError
    from rlgaf_ray.config.load import dump_config, load_config, with_values
    from rlgaf_ray.config.schema import Config

__all__ = ["Config", "ConfigError", "dump_config", "load_config", "with_values"]

_MODULES = {"Config": "schema", "ConfigError": "compose"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'load')}"), name)
