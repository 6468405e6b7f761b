"""The result of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlgaf_ray.config.schema import Config
from rlgaf_ray.data.remote import Remote
from rlgaf_ray.data.storage import Place
from rlgaf_ray.loop.run_folder import RunFolder
from rlgaf_ray.models.generator import load_generator
from rlgaf_ray.models.tokenizer import load_tokenizer
from rlgaf_ray.types import Metrics


@dataclass(frozen=True)
class Outcome:
    """Metrics, samples and models of a run that finished or was stopped."""

    config: Config
    """The resolved config, including the run's name."""
    iteration: int
    evaluated: int
    """Iteration of the last evaluation; 0 if the run was stopped before one of the trained generator."""
    first: Metrics
    """Metrics of the SFT model, before training."""
    last: Metrics
    """Metrics of the last evaluation; empty if the run was stopped before one of the trained generator."""
    samples_before: list[str]
    samples_after: list[str]

    @property
    def interrupted(self) -> bool:
        """Whether the run was stopped before its last iteration."""
        return self.iteration < self.config.run.iterations

    @property
    def samples(self) -> list[tuple[str, str]]:
        """Pairs of responses to the same held-out prompts: by the SFT model and by the trained generator."""
        return list(zip(self.samples_before, self.samples_after, strict=False))

    @property
    def folder(self) -> Place:
        """Run folder: ``generator/``, ``discriminator/`` (Hugging Face format), ``checkpoints/``, metrics, samples."""
        return RunFolder(self.config.run).place

    def generator(self) -> PreTrainedModel:
        """Load the exported generator: the moving average of its weights if ``generator.average_decay`` is set."""
        with self._exported() as folder:
            return load_generator(folder, trust_remote_code=self.config.model.trust_remote_code)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the exported generator."""
        with self._exported() as folder:
            return load_tokenizer(folder, trust_remote_code=self.config.model.trust_remote_code)

    @contextmanager
    def _exported(self) -> Iterator[Path]:
        place = self.folder / "generator"
        if not isinstance(place, Remote):
            yield place
            return
        with tempfile.TemporaryDirectory(prefix="rlgaf-") as temporary:
            place.download(Path(temporary))
            yield Path(temporary)
