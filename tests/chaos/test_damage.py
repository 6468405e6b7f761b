"""Resuming a run with damaged checkpoints."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.program import SMALL, count_missing, reached


def test_damaged_checkpoints_are_reported_and_skipped(start, small_under, record, tmp_path: Path) -> None:
    words = small_under(tmp_path, "run.name=hurt", *SMALL, "checkpoint.every=2", "checkpoint.keep=3")
    folder = tmp_path / "hurt"
    start([*words, "run.iterations=6"], folder).ended(0)
    truncated = folder / "checkpoints/step_000006/learner/optimizer.safetensors"
    with truncated.open("r+b") as file:
        file.truncate(truncated.stat().st_size // 2)
    flipped = folder / "checkpoints/step_000004/discriminator/model.safetensors"
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)

    run = start([*words, "run.iterations=8", "--resume"], folder)
    detected = run.prints("damaged checkpoint skipped: .*step_000004: discriminator/model.safetensors is corrupted")
    run.prints("damaged checkpoint skipped: .*step_000006: learner/optimizer.safetensors is corrupted")
    run.prints("resuming from .*step_000002")
    recovered = run.wait(lambda: 2 < reached(folder) < 6, "new iteration")
    run.ended(0)
    assert reached(folder) == 8
    since = {"detected": [detected - run.started], "recovered": [recovered - run.started]}
    record(
        "checkpoint: one truncated, one with a flipped bit", times=2, **since, repeated=4, missing=count_missing(folder)
    )
