"""A weight update through a shared file: bit-exact, tied tensors stored once, file removed afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlgaf_ray.weights import object_store
from rlgaf_ray.weights.shared_file import read_shared, shared_file
from rlgaf_ray.weights.state import num_bytes, to_arrays


def test_an_update_round_trips_exactly() -> None:
    tied = torch.randn(30, 10)
    state = {"embedding": tied, "scale": torch.randn(5).bfloat16(), "step": torch.tensor(3), "lm_head": tied}
    update = to_arrays(state, 4)
    for array in update.arrays.values():
        array.flags.writeable = False  # like arrays from an object store
    with shared_file(update) as path:
        written = path.stat().st_size
        back = read_shared(str(path))
    assert not path.exists()
    assert 0 < written - num_bytes(update) < 1000  # tied tensors are written once
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    assert back["embedding"].data_ptr() == back["lm_head"].data_ptr()


def test_a_failed_load_leaves_no_file() -> None:
    class MockBrokenControl:
        file: str

        def start_weight_update(self) -> None: ...

        def update_weights(self, request: dict) -> None:
            self.file = request["update_info"]["file"]
            assert Path(self.file).is_file()
            raise RuntimeError("the worker died")

    control = MockBrokenControl()
    with pytest.raises(RuntimeError, match=r"^the worker died$"):
        object_store.push(control, to_arrays({"a": torch.ones(3)}, 1), same_process=False)  # type: ignore[arg-type]
    assert not Path(control.file).exists()
