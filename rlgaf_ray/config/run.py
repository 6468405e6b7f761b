"""The run: its name, where it is kept, how long it is."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from platformdirs import user_cache_path
from pydantic import Field, field_validator

from rlgaf_ray.config import uri
from rlgaf_ray.config.cluster import ClusterSection
from rlgaf_ray.config.section import Positive, Rate, Section


class RunSection(Section):
    """Name, folder, seed and length of the run."""

    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder name under root; default: task and time"
    )
    root: str = Field("runs", description="where run folders are made: a path, file:///, s3:// or gs://")
    storage_timeout_seconds: Rate = Field(
        120.0, description="how long a failing read or write of s3:// and gs:// is tried again"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    iterations: Positive = Field(150, description="generator updates")

    @field_validator("root")
    @classmethod
    def _usable_root(cls, root: str) -> str:
        if not root or not uri.unquoted(root).isprintable():
            raise ValueError("give a path or a URI, without control characters")
        if uri.is_uri(root):
            uri.check(root)
        return root

    @property
    def folder(self) -> Path:
        """The run's folder in the file system; where ``remote`` names another place, what is on its way to there."""
        assert self.name is not None, "the run has no name yet"
        if self.remote is not None:
            place = hashlib.sha256(uri.public(self.root).encode()).hexdigest()[:16]
            return user_cache_path("rlgaf_ray") / "runs" / place / self.name
        return uri.local_path(self.root) / self.name

    @property
    def remote(self) -> str | None:
        """The URI of the run's folder, where that is not in the file system. It may hold a key: never show it."""
        assert self.name is not None, "the run has no name yet"
        return uri.child(self.root, self.name) if uri.is_remote(self.root) else None

    @property
    def shown(self) -> str:
        """Where the run's folder is, for people."""
        return str(self.folder) if self.remote is None else uri.public(self.remote)

    @property
    def again(self) -> str:
        """What follows --resume to go on with this run."""
        return f"run.name={self.name}" if self.remote is None else self.shown


def check_storage(run: RunSection, cluster: ClusterSection) -> None:
    """Raise ``ValueError`` where an actor may try to store a checkpoint for longer than its answer is waited for."""
    limit, answer = run.storage_timeout_seconds, cluster.timeout_seconds
    if uri.is_remote(run.root) and limit >= answer:
        raise ValueError(
            f"run.storage_timeout_seconds={limit:g} must be below cluster.timeout_seconds={answer:g}: an actor "
            "that still tries to store its checkpoint would pass for dead"
        )
