"""What a backend needs of a running vLLM: the phases of a weight update, as ``vllm.LLM`` has them."""

from __future__ import annotations

from typing import Any, Protocol


class Control(Protocol):
    def init_weight_transfer_engine(self, request: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, request: dict[str, Any]) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...

    def reset_prefix_cache(self) -> bool: ...
