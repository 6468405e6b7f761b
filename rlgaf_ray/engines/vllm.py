"""Rollout engine on vLLM in the current process, which starts in seconds and receives weights by reference.

``engines/vllm_async.py`` runs vLLM in a separate process, with the same rollouts.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import torch

from rlgaf_ray.config.schema import Config
from rlgaf_ray.engines.base import RolloutEngine
from rlgaf_ray.engines.checks import check_length, check_request, max_response_tokens
from rlgaf_ray.engines.vllm_process import prepare_children, prepare_process, require_vllm
from rlgaf_ray.models.folder import longest_sequence
from rlgaf_ray.models.generator import end_of_text_ids
from rlgaf_ray.models.vocabulary import masked_token_ids
from rlgaf_ray.types import FinishReason, Metrics, Prompt, Rollout, SamplingSettings, WeightUpdate
from rlgaf_ray.weights import nccl, receive
from rlgaf_ray.weights.choice import Backend
from rlgaf_ray.weights.control import Control
from rlgaf_ray.weights.manifest import DeviceUpdate
from rlgaf_ray.weights.nccl import Rendezvous
from rlgaf_ray.weights.state import Receipt

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams, TokensPrompt

CPU_BLOCK_TOKENS = 32
"""The smallest KV cache block of vLLM's CPU attention. The default of 128 shares prefixes only in steps of 128 tokens
and allocates 128 tokens for a rollout of 31."""

CPU_STEP_TOKENS = 4096
"""Prompt tokens per step on CPU (vLLM's default). Chunked prefill is off there: after a split prompt vLLM 0.32 rewinds
the request's seeded generator, which crashes for CPU generators."""


class VLLMEngine(RolloutEngine):
    """A vLLM engine on one device, or on several with tensor parallelism.

    Input and output are token ids; no tokenizer is loaded. Log-probs are those of the sampling distribution (vLLM's
    ``processed_logprobs``: after temperature, truncation and the end-of-text mask).

    A rollout depends on its prompt, its seed and the weights, but not on the rest of the batch, except for rounding:
    the batch size changes logits by about 1e-6, so a different token may be sampled in a near-tie.

    Prompts with a common prefix share its KV cache blocks. ``prompt_tokens`` and ``cached_prompt_tokens`` count all
    prompt tokens so far and the prefix cache hits among them, as reported by vLLM.

    Args:
        model_folder: a Hugging Face folder or hub id.
        max_model_len: maximum length of a prompt plus its response.
        kv_cache_mib: KV cache size on CPU; on a GPU ``gpu_memory_utilization`` applies instead.
        threads: CPU threads, fixed per process as vLLM disables ``torch.set_num_threads``; None keeps torch's setting.
        block_size: tokens per KV cache block, multiple of 32 on CPU; None: ``CPU_BLOCK_TOKENS`` or vLLM's default.
        prefix_caching: False recomputes every prompt (for benchmarks).
        tensor_parallel_size: devices that share each layer, in worker processes started by vLLM.
        transfer: weight transfer backend (``weights.choice``).
        sleep_level: 1: ``sleep`` offloads GPU weights to host memory; 2: it discards them; 0: no sleep mode (CPU).

    Raises:
        UserError: vLLM is missing, or the model has fewer positions than ``max_model_len``.
        ValueError: this process already runs with another thread count.
    """

    def __init__(
        self,
        model_folder: str | Path,
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        max_model_len: int,
        kv_cache_mib: int = 256,
        gpu_memory_utilization: float = 0.4,
        threads: int | None = None,
        trust_remote_code: bool = False,
        block_size: int | None = None,
        prefix_caching: bool = True,
        tensor_parallel_size: int = 1,
        transfer: Backend = "object_store",
        sleep_level: int = 0,
    ) -> None:
        require_vllm()
        prepare_process()

        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(model_folder, trust_remote_code=trust_remote_code)
        check_length(max_model_len, longest_sequence(config), f"the model {model_folder}")
        self._config = config
        self._end_of_text_ids = end_of_text_ids(config)
        self._receipt = Receipt.of_model(config, trust_remote_code=trust_remote_code)
        self._max_model_len = max_model_len
        self._transfer = transfer
        self._sleep_level = sleep_level
        self.asleep = False

        if threads is not None:
            torch.set_num_threads(threads)
            if torch.get_num_threads() != threads:
                raise ValueError(
                    f"this process is fixed to {torch.get_num_threads()} threads by an earlier vLLM engine: "
                    f"start the engine with {threads} threads in another process"
                )

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # caused by vLLM's own use of torch
            from vllm.platforms import current_platform

            from rlgaf_ray.weights import object_store

            object_store.register()
            on_cpu = current_platform.is_cpu()
            arguments: dict[str, Any] = {
                "skip_tokenizer_init": True,
                "trust_remote_code": trust_remote_code,
                "dtype": dtype,
                "max_model_len": max_model_len,
                "enforce_eager": on_cpu,
                "kv_cache_memory_bytes": kv_cache_mib * 2**20 if on_cpu else None,
                "gpu_memory_utilization": gpu_memory_utilization,
                "block_size": block_size or (CPU_BLOCK_TOKENS if on_cpu else None),
                "enable_prefix_caching": prefix_caching,
                "enable_chunked_prefill": False if on_cpu else None,
                "max_num_batched_tokens": max(CPU_STEP_TOKENS, max_model_len) if on_cpu else None,
                "disable_log_stats": True,
                "generation_config": "vllm",  # ignore the model's generation_config.json
                "logprobs_mode": "processed_logprobs",
                "weight_transfer_config": {"backend": transfer},
                "tensor_parallel_size": tensor_parallel_size,
                "enable_sleep_mode": sleep_level > 0,
            }
            if tensor_parallel_size > 1:
                # Inside a Ray actor vLLM would otherwise request further GPUs from Ray.
                arguments["distributed_executor_backend"] = "mp"
                prepare_children(transfer)
            self._same_process = tensor_parallel_size == 1
            self._start(str(model_folder), arguments)
        receive.open_channel(self._control, transfer)
        self.policy_version = 0
        self.prompt_tokens = 0
        self.cached_prompt_tokens = 0

    @classmethod
    def from_config(
        cls,
        model_folder: str | Path,
        config: Config,
        *,
        max_tokens: int,
        device: str,
        threads: int | None,
        transfer: Backend,
    ) -> Self:
        """Start an engine; vLLM selects the device itself."""
        return cls(
            model_folder, max_model_len=max_tokens, threads=threads, transfer=transfer, **cls._configured(config)
        )

    @classmethod
    def _configured(cls, config: Config) -> dict[str, Any]:
        """Return the constructor arguments that come from config keys."""
        return {
            "dtype": config.model.dtype,
            "kv_cache_mib": config.rollout.kv_cache_mib,
            "gpu_memory_utilization": config.rollout.gpu_memory_utilization,
            "trust_remote_code": config.model.trust_remote_code,
            "tensor_parallel_size": config.rollout.tensor_parallel_size,
            "sleep_level": config.rollout.sleep_level,
        }

    def _start(self, model: str, arguments: dict[str, Any]) -> None:
        from vllm import LLM

        self._llm = LLM(model, use_tqdm_on_load=False, **arguments)
        self._control: Control = self._llm

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingSettings, *, seeds: Sequence[int]) -> list[Rollout]:
        """Sample ``sampling.samples_per_prompt`` responses to each prompt; one seed per rollout, in output order.

        Raises:
            UserError: a prompt plus its response exceeds ``max_model_len``.
        """
        from vllm import TokensPrompt
        from vllm.logprobs import FlatLogprobs

        check_request(prompts, sampling, seeds, limit=self._max_model_len, what="this engine")
        repeated = [prompt for prompt in prompts for _ in range(sampling.samples_per_prompt)]
        version = self.policy_version
        # One request per rollout, for separate seeds; measured to be as fast as n samples per request.
        outputs = self._run_requests(
            [TokensPrompt(prompt_token_ids=prompt.token_ids.tolist()) for prompt in repeated],
            [
                self._sampling_params(sampling, seed, max_tokens=max_response_tokens(prompt, sampling))
                for prompt, seed in zip(repeated, seeds, strict=True)
            ],
        )
        rollouts = []
        for prompt, output in zip(repeated, outputs, strict=True):
            completion = output.outputs[0]
            assert completion.finish_reason in ("stop", "length"), completion.finish_reason
            assert isinstance(completion.logprobs, FlatLogprobs)
            assert len(completion.logprobs.logprobs) == len(completion.token_ids)
            self.prompt_tokens += len(prompt.token_ids)
            self.cached_prompt_tokens += output.num_cached_tokens or 0
            rollouts.append(
                Rollout(
                    prompt_id=prompt.prompt_id,
                    prompt_ids=prompt.token_ids,
                    response_ids=np.array(completion.token_ids, np.int32),
                    behaviour_logprobs=np.array(completion.logprobs.logprobs, np.float32),
                    finish_reason=cast(FinishReason, completion.finish_reason),
                    policy_version=version,
                )
            )
        return rollouts

    def _run_requests(self, prompts: list[TokensPrompt], params: list[SamplingParams]) -> list[RequestOutput]:
        return self._llm.generate(prompts, params, use_tqdm=False)

    def clear_prefix_cache(self) -> None:
        """Clear the prefix cache, as every weight update does."""
        self._control.reset_prefix_cache()

    def join_transfer(self, rendezvous: Rendezvous, engine: int) -> None:
        """Join the learner's broadcast group as engine number ``engine`` (transfer ``nccl``)."""
        assert self._transfer == "nccl", f"only for transfer nccl, not {self._transfer}"
        nccl.connect(self._control, rendezvous, engine)

    def update_weights(self, update: WeightUpdate | DeviceUpdate) -> Metrics:
        """Load new weights; the last chunk clears the prefix cache and sets the new version.

        Raises:
            ValueError: the update does not match this engine's model. A single-chunk update leaves it unchanged.
        """
        start = time.perf_counter()
        receive.check(update, self._receipt)
        checked = time.perf_counter()
        if self.asleep and update.is_first:
            self._wake_up(["weights"])  # the KV cache is reallocated by wake_up, before generation
        self._load(update)
        if update.is_last:
            self.policy_version = update.policy_version
        return {
            "check_seconds": checked - start,
            "load_seconds": time.perf_counter() - start,
            "megabytes": receive.megabytes(update),
        }

    def _load(self, update: WeightUpdate | DeviceUpdate) -> None:
        receive.load(self._control, update, same_process=self._same_process)

    def sleep(self) -> None:
        """Free GPU memory; after level 2, call ``update_weights`` before ``generate``."""
        self._sleep(self._sleep_level)
        self.asleep = True

    def wake_up(self) -> None:
        """Reallocate weights and KV cache after ``sleep``."""
        self._wake_up(None)
        self.asleep = False

    def _sleep(self, level: int) -> None:
        self._llm.sleep(level=level)

    def _wake_up(self, tags: list[str] | None) -> None:
        self._llm.wake_up(tags)

    def close(self) -> None:
        """Free the engine's memory; the process can then start another engine."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()

    def _sampling_params(self, sampling: SamplingSettings, seed: int, *, max_tokens: int) -> SamplingParams:
        from vllm import SamplingParams

        masked = masked_token_ids(self._config, stop_at_end_of_text=sampling.stop_at_end_of_text)
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=seed,
            ignore_eos=True,  # end-of-text ids come from the model's config, see stop_token_ids
            logprobs=0,  # of the sampled token only
            flat_logprobs=True,  # lists instead of one object per token
            detokenize=False,
            skip_clone=True,  # each instance is used once
            stop_token_ids=self._end_of_text_ids if sampling.stop_at_end_of_text else None,
            logit_bias=dict.fromkeys(masked, float("-inf")) or None,
        )
