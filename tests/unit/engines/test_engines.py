"""The engine table: every row names an engine class, which defines exactly the methods that its traits promise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from rlgaf_ray.actors.rollout import RolloutWorker
from rlgaf_ray.config import ConfigError, load_config
from rlgaf_ray.config import rollout as rollout_section
from rlgaf_ray.config.engines import ENGINES, EngineName, EngineTraits, engines_with
from rlgaf_ray.engines.base import RolloutEngine
from rlgaf_ray.engines.build import engine_class

ALWAYS = ("from_config", "generate", "update_weights", "close")


def test_the_table_has_a_row_for_every_name() -> None:
    assert set(ENGINES) == set(get_args(EngineName))
    assert engines_with("device_transfer") == "vllm or vllm_async"


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_defines_the_methods_of_its_traits(name: EngineName) -> None:
    found = engine_class(load_config(None, [f"rollout.engine={name}"]))
    traits = ENGINES[name]
    expected = dict.fromkeys(ALWAYS, True)
    expected |= {"sleep": traits.sleeps, "wake_up": traits.sleeps, "join_transfer": traits.device_transfer}
    # vars, because attribute access creates a new bound method each time
    defined = {
        method: any(method in vars(base) for base in found.__mro__ if base is not RolloutEngine) for method in expected
    }
    assert defined == expected


class Echo(RolloutEngine):
    """Returns no rollouts and records its constructor arguments."""

    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @classmethod
    def from_config(cls, *arguments: Any, **options: Any) -> Echo:
        engine = cls()
        engine.arguments, engine.options = arguments, options
        return engine

    def generate(self, prompts: Sequence[Any], sampling: Any, *, seeds: Sequence[int]) -> list[Any]:
        return []


def test_a_new_engine_only_needs_a_row_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = EngineTraits(f"{__name__}:Echo")
    monkeypatch.setattr(rollout_section, "ENGINES", {**ENGINES, "transformers": row})
    config = load_config(None, ["rollout.engine=transformers"])
    worker = RolloutWorker(str(tmp_path), config, max_tokens=9, device="cpu", threads=2)
    worker.engine = worker.build(transfer="object_store")  # as ``start`` does, in an actor
    assert isinstance(worker.engine, Echo)
    assert worker.engine.arguments == (str(tmp_path), config)
    assert worker.engine.options == {"max_tokens": 9, "device": "cpu", "threads": 2, "transfer": "object_store"}
    assert worker.generate([], None, []) == []  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="Echo cannot sleep"):
        worker.sleep()
    with pytest.raises(ConfigError, match=r"seqgan-lstm is not supported by rollout\.engine=transformers"):
        load_config(None, ["rollout.engine=transformers", "model.generator=seqgan-lstm"])
    with pytest.raises(ConfigError, match=r"rollout\.sleep_level=1 is not supported by rollout\.engine=transformers"):
        load_config(None, ["rollout.engine=transformers", "rollout.sleep_level=1", "cluster.gpus_per_actor=1"])
