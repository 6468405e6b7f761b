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
    """Metrics and samples of a run that reached its end or was asked to stop."""

    config: Config
    """As the run used it, with its name."""
    iteration: int
    first: Metrics
    """The SFT model's evaluation."""
    last: Metrics
    """The newest evaluation; empty where the run was stopped before there was one."""
    samples_before: list[str]
    samples_after: list[str]

    @property
    def interrupted(self) -> bool:
        return self.iteration < self.config.run.iterations

    @property
    def samples(self) -> list[tuple[str, str]]:
        """Responses to the same held-out prompts: the SFT model's, then the trained generator's."""
        return list(zip(self.samples_before, self.samples_after, strict=False))

    @property
    def folder(self) -> Place:
        """With ``generator/`` and ``discriminator/`` (Hugging Face folders), ``checkpoints/``, metrics and samples."""
        return RunFolder(self.config.run).place

    def generator(self) -> PreTrainedModel:
        """The exported generator, with its moving average's weights where ``generator.average_decay`` asks for one."""
        with self._exported() as folder:
            return load_generator(folder, trust_remote_code=self.config.model.trust_remote_code)

    def tokenizer(self) -> PreTrainedTokenizerBase:
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
