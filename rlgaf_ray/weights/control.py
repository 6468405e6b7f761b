"""Protocol of the weight update phases that a transfer backend calls on a running vLLM."""

from __future__ import annotations

from typing import Any, Protocol


class Control(Protocol):
    """The weight update methods of ``vllm.LLM``."""

    def init_weight_transfer_engine(self, request: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, request: dict[str, Any]) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...

    def reset_prefix_cache(self) -> bool: ...
