"""What pyproject.toml cannot say: the presets of ``configs/`` become package data, as ``rlgaf_ray/configs/``."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["rlgaf_ray*"]), "rlgaf_ray.configs"],
    package_dir={"rlgaf_ray.configs": "configs"},
)
