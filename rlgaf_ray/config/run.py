"""The run: name, folder, seed and length."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Annotated

from platformdirs import user_cache_path
from pydantic import Field, field_validator

from rlgaf_ray.config import uri
from rlgaf_ray.config.cluster import ClusterSection
from rlgaf_ray.config.reader import read_yaml
from rlgaf_ray.config.section import Positive, Rate, Section


class RunSection(Section):
    """Name, folder, seed and length of the run."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="name of the run's folder under root; null: task and start time",
    )
    root: str = Field("runs", description="parent of the run folders: a path, file:///, s3:// or gs://")
    storage_timeout_seconds: Rate = Field(
        120.0, description="seconds for which a failing read or write of s3:// or gs:// is retried"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    iterations: Positive = Field(150, description="number of generator updates")

    @field_validator("root")
    @classmethod
    def _usable_root(cls, root: str) -> str:
        if not root or not uri.unquoted(root).isprintable():
            raise ValueError("must be a path or a URI without control characters")
        if uri.is_uri(root):
            uri.check(root)
        return root

    @property
    def folder(self) -> Path:
        """Local folder of the run; for a ``remote`` run the staging folder that is mirrored to it."""
        assert self.name is not None, "the run has no name yet"
        if self.remote is not None:
            place = hashlib.sha256(uri.public(self.root).encode()).hexdigest()[:16]
            return user_cache_path("rlgaf_ray") / "runs" / place / self.name
        return uri.local_path(self.root) / self.name

    @property
    def remote(self) -> str | None:
        """URI of the run's folder in an object store, else None. May contain a key: show ``shown`` instead."""
        assert self.name is not None, "the run has no name yet"
        return uri.child(self.root, self.name) if uri.is_remote(self.root) else None

    @property
    def shown(self) -> str:
        """Location of the run's folder, without keys, for messages."""
        return str(self.folder) if self.remote is None else uri.public(self.remote)

    @property
    def again(self) -> str:
        """Arguments of --resume that resume this run, for a shell."""
        assert self.name is not None, "the run has no name yet"
        if self.remote is not None:
            return shlex.quote(self.shown)
        root = [] if self.root == type(self).model_fields["root"].default else [f"run.root={_as_yaml(self.root)}"]
        return shlex.join([*root, f"run.name={_as_yaml(self.name)}"])


def _as_yaml(text: str) -> str:
    """Quote text that YAML reads as something else, such as ``2026``."""
    try:
        return text if read_yaml(text) == text else json.dumps(text)
    except ValueError:
        return json.dumps(text)


def check_storage(run: RunSection, cluster: ClusterSection) -> None:
    """Raise ``ValueError`` if an actor may retry a checkpoint write for longer than its call may take."""
    limit, answer = run.storage_timeout_seconds, cluster.timeout_seconds
    if uri.is_remote(run.root) and limit >= answer:
        raise ValueError(
            f"run.storage_timeout_seconds={limit:g} must be below cluster.timeout_seconds={answer:g}, else an actor "
            "that retries a checkpoint write counts as failed: lower it, or raise cluster.timeout_seconds"
        )
