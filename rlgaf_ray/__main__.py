"""``python -m rlgaf_ray``."""

from rlgaf_ray.main import entry_point

entry_point()
