"""Rollout engine on vLLM in a separate process (``AsyncLLM``), with optional in-flight weight updates."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rlgaf_ray.config.schema import Config
from rlgaf_ray.engines.vllm import VLLMEngine
from rlgaf_ray.engines.vllm_process import prepare_children
from rlgaf_ray.types import WeightUpdate
from rlgaf_ray.weights.manifest import DeviceUpdate

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams, TokensPrompt
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")
CONTROL_SECONDS = 300.0
"""Timeout of each phase of a weight update, including the wait for requests in flight."""


class AsyncVLLMEngine(VLLMEngine):
    """Generates the same rollouts as ``VLLMEngine`` in another process; same arguments.

    ``generate`` and ``update_weights`` may be called concurrently from different threads. An update waits for requests
    in flight, and later requests wait for the update.

    Args:
        in_flight: in-flight weight updates: an update pauses running requests instead, which then resume with the new
            weights (pause mode ``keep``). Their KV cache is recomputed. Each token's behaviour log-prob is under the
            weights that sampled it; a rollout's ``policy_version`` is the oldest one that sampled any of its tokens.
    """

    def __init__(self, *args: Any, in_flight: bool = False, **options: Any) -> None:
        self._in_flight = in_flight
        self._requests = 0
        super().__init__(*args, **options)

    @classmethod
    def _configured(cls, config: Config) -> dict[str, Any]:
        return super()._configured(config) | {"in_flight": config.weights.in_flight}

    def _start(self, model: str, arguments: dict[str, Any]) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        prepare_children(self._transfer)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()

        async def start() -> AsyncLLM:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, **arguments))

        self._async_llm = self._wait(start(), timeout=None)
        self._control = _Control(self._async_llm, self._wait)
        self._same_process = False

    def _run_requests(self, prompts: list[TokensPrompt], params: list[SamplingParams]) -> list[RequestOutput]:
        from vllm.sampling_params import RequestOutputKind

        first = self._requests
        self._requests += len(prompts)
        for each in params:
            each.output_kind = RequestOutputKind.FINAL_ONLY

        async def run(index: int) -> RequestOutput:
            last = None
            async for output in self._async_llm.generate(prompts[index], params[index], f"{first + index}"):
                last = output
            assert last is not None and last.finished
            return last

        async def run_all() -> list[RequestOutput]:
            return await asyncio.gather(*(run(index) for index in range(len(prompts))))

        return self._wait(run_all(), timeout=None)

    def _load(self, update: WeightUpdate | DeviceUpdate) -> None:
        """Load a chunk; generation is paused from the first to the last chunk, and stays paused after a failure."""
        mode: Literal["keep", "wait"] = "keep" if self._in_flight else "wait"
        if update.is_first:
            self._wait(self._async_llm.pause_generation(mode=mode, clear_cache=True))
        super()._load(update)
        if update.is_last:
            self._wait(self._async_llm.resume_generation())

    def _sleep(self, level: int) -> None:
        self._wait(self._async_llm.sleep(level=level))

    def _wake_up(self, tags: list[str] | None) -> None:
        self._wait(self._async_llm.wake_up(tags))

    def close(self) -> None:
        """Shut down vLLM's process."""
        self._async_llm.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T], timeout: float | None = CONTROL_SECONDS) -> T:
        """Run a coroutine on the engine's event loop. Raises ``TimeoutError``."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)
        except TimeoutError as error:
            if timeout is None:
                raise
            raise TimeoutError(f"vLLM's process did not answer within {timeout:g} s") from error


class _Control:
    """Adapts ``AsyncLLM`` to the weight update methods of ``LLM``."""

    def __init__(self, llm: AsyncLLM, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._llm = llm
        self._wait = wait

    def init_weight_transfer_engine(self, request: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        self._wait(self._llm.init_weight_transfer_engine(WeightTransferInitRequest(**request)))

    def start_weight_update(self) -> None:
        self._wait(self._llm.start_weight_update())

    def update_weights(self, request: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        self._wait(self._llm.update_weights(WeightTransferUpdateRequest(**request)))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._wait(self._llm.finish_weight_update(weight_version))

    def reset_prefix_cache(self) -> bool:
        return self._wait(self._llm.reset_prefix_cache())
