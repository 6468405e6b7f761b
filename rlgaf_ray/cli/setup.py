"""Commands for the installation: doctor, presets."""

from __future__ import annotations

import click


@click.command()
@click.option("--fix", is_flag=True, help="Uninstall packages built for another torch.")
def doctor(fix: bool) -> int:
    """Check the installation and the machine."""
    from rlgaf_ray import doctor as installation

    return installation.run(fix=fix)


@click.command()
def presets() -> int:
    """List the configs shipped with the package."""
    from rlgaf_ray.config.presets import first_line
    from rlgaf_ray.config.presets import presets as files

    width = max(map(len, files()))
    for name, path in files().items():
        print(f"{name:<{width}}  {first_line(path)}")
    return 0
