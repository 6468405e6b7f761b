"""Content fingerprints of models: folders with equal fingerprints hold the same model."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from rlgaf_ray.config.model import FILM_REVIEWS, FROM_SCRATCH
from rlgaf_ray.data.cache import content_hash
from rlgaf_ray.data.handover import checksum
from rlgaf_ray.models.built_in import SHA256
from rlgaf_ray.models.generator import read_config

READ = (
    *("*.json", "*.jinja", "additional_chat_templates/*.jinja"),  # configs, tokenizer, chat templates
    *("*.model", "*.txt", "*.tiktoken"),  # vocabularies
    *("*.safetensors", "*.bin"),  # weights
    *("*.py", "*.npz"),  # code run under model.trust_remote_code; contrast samples
)
"""Files of a Hugging Face folder that affect the model or its tokenizer."""


def model_fingerprint(source: str, *, trust_remote_code: bool = False) -> str:
    """Return an identifier of the content of ``model.generator``: the hash of a folder's files, or the hub commit."""
    if source == FILM_REVIEWS:
        return SHA256
    if source in FROM_SCRATCH:
        return source
    folder = Path(os.path.expanduser(source))
    if folder.is_dir():
        return folder_fingerprint(folder)
    config = read_config(source, trust_remote_code=trust_remote_code)
    return f"{source}@{getattr(config, '_commit_hash', None)}"


def folder_fingerprint(folder: Path) -> str:
    """Return the SHA-256 of names and contents of all files that loading can read, cached per process."""
    files = sorted({path for pattern in READ for path in folder.glob(pattern) if path.is_file()})
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sums = list(pool.map(_checksum, files))
    names = [path.relative_to(folder).as_posix() for path in files]
    return content_hash(part for pair in zip(names, sums, strict=True) for part in pair)


def _checksum(file: Path) -> str:
    stat = file.stat()
    return _checksum_of(file.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


@cache
def _checksum_of(file: Path, *version: int) -> str:
    """Return a cached file checksum; ``version`` (size, times, inode) changes if the file was rewritten."""
    return checksum(file)
