"""The generator: build or load a causal language model, and compute the log-probabilities of responses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedConfig, PreTrainedModel

from rlgaf_ray.errors import UserError
from rlgaf_ray.models.built_in import model_source
from rlgaf_ray.models.families import attention_for
from rlgaf_ray.models.folder import longest_sequence, read_causal_lm, read_config
from rlgaf_ray.models.legal import constrain, load_legal
from rlgaf_ray.models.lstm import LstmConfig, build_lstm
from rlgaf_ray.objectives.logprobs import Head, chunked_logprobs, chunked_logprobs_and_kl, log_probabilities
from rlgaf_ray.types import SequenceBatch

TINY_GPT2 = "tiny-gpt2"
TINY_GPT2_POSITIONS = 256
TINY_GPT2_LAYERS = 4
SEQGAN_LSTM = "seqgan-lstm"
SEQGAN_LSTM_SIZE = 256
FROM_SCRATCH_VOCABULARY = 4096


def build_from_scratch(name: str, *, vocab_size: int, end_of_text_id: int, seed: int) -> PreTrainedModel:
    """Build the model of a name in ``FROM_SCRATCH``, initialised from ``seed``."""
    if name == TINY_GPT2:
        return build_tiny_gpt2(vocab_size=vocab_size, end_of_text_id=end_of_text_id, seed=seed)
    assert name == SEQGAN_LSTM, name
    return build_lstm(
        vocab_size=vocab_size,
        end_of_text_id=end_of_text_id,
        seed=seed,
        embedding_size=SEQGAN_LSTM_SIZE,
        hidden_size=SEQGAN_LSTM_SIZE,
    )


def build_tiny_gpt2(
    *, vocab_size: int, end_of_text_id: int, seed: int, num_positions: int = TINY_GPT2_POSITIONS
) -> GPT2LMHeadModel:
    """Build a GPT-2 of 4 layers x 192 (2.6 M parameters with 4,096 tokens), without dropout, from ``seed``."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=num_positions,
        n_embd=192,
        n_layer=TINY_GPT2_LAYERS,
        n_head=3,
        activation_function="gelu_pytorch_tanh",  # GPT-2's gelu_new in a fused kernel
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end_of_text_id,
        eos_token_id=end_of_text_id,
        pad_token_id=end_of_text_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel._from_config(config, attn_implementation="eager")


def max_positions(source: str | Path, *, trust_remote_code: bool = False) -> int | None:
    """Return the maximum sequence length of a model in tokens; None if it is unbounded."""
    if source == TINY_GPT2:
        return TINY_GPT2_POSITIONS
    if source == SEQGAN_LSTM:
        return LstmConfig().max_position_embeddings
    return longest_sequence(read_config(source, trust_remote_code=trust_remote_code))


def num_layers(source: str | Path, *, trust_remote_code: bool = False) -> int:
    """Return the number of layers of a transformer."""
    if source == TINY_GPT2:
        return TINY_GPT2_LAYERS
    config = read_config(source, trust_remote_code=trust_remote_code)
    return int(config.get_text_config().num_hidden_layers)


def end_of_text_ids(config: PreTrainedConfig) -> list[int]:
    """Return the end-of-text ids of the model's config.

    Raises:
        UserError: the config has none.
    """
    token_ids = config.get_text_config().eos_token_id
    if token_ids is None:
        raise UserError(
            f"{config.name_or_path or 'the model'} has no end-of-text token: set eos_token_id in its config.json"
        )
    return [token_ids] if isinstance(token_ids, int) else list(token_ids)


def load_generator(
    source: str | Path,
    *,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    device: torch.device = torch.device("cpu"),
) -> PreTrainedModel:
    """Load a causal LM in eval mode: without dropout, sampling and training use the same distribution.

    A table of legal tokens in its folder is applied (``models.legal``). ``allow_pickle`` permits pytorch_model.bin if
    there are no safetensors, still read with ``weights_only``. Raises ``UserError`` if the model cannot be read.
    """
    config = read_config(source, trust_remote_code=trust_remote_code)
    model = read_causal_lm(
        source,
        allow_pickle=allow_pickle,
        config=config,
        dtype=getattr(torch, dtype),
        trust_remote_code=trust_remote_code,
        attn_implementation=attention_for(config, device),
    )
    if (legal := load_legal(model_source(source))) is not None:
        constrain(model, legal)
    return model.to(device).eval()  # type: ignore[arg-type]  # transformers wraps it untyped


def blocks_of(network: PreTrainedModel) -> list[nn.Module]:
    """Return a transformer's blocks from the lowest to the highest; an empty list if the network has no such stack."""
    total = getattr(network.config.get_text_config(), "num_hidden_layers", 0)
    if not total:
        return []
    # Search beside the token embedding: OPT nests its decoder, and a vision tower has blocks too.
    embedding = network.get_input_embeddings()
    owner = next((part for part in network.base_model.modules() if embedding in part.children()), network.base_model)
    lists = (part for part in owner.modules() if isinstance(part, nn.ModuleList))
    return list(next((part for part in lists if len(part) == total), []))


def embedding_matrix(model: PreTrainedModel) -> Float[Tensor, "vocabulary width"]:
    """Return the input embedding of every token, with the family's scale, if any (Gemma).

    A mixture of the rows is a soft token. The result is the weight itself for a plain ``nn.Embedding``, else a new
    tensor.
    """
    module = model.get_input_embeddings()
    weight = module.weight
    assert isinstance(weight, Tensor)
    if type(module) is nn.Embedding:
        return weight
    return module(torch.arange(len(weight), device=weight.device))


def sampling_logits(
    logits: Float[Tensor, "*shape vocabulary"], *, temperature: float, masked_token_ids: Sequence[int]
) -> Float[Tensor, "*shape vocabulary"]:
    """Return the logits of the sampling distribution. Modifies ``logits`` in place if possible, to save a copy."""
    if temperature != 1.0:
        logits = logits / temperature
    if masked_token_ids:
        logits.index_fill_(-1, torch.tensor(masked_token_ids, device=logits.device), float("-inf"))
    return logits


def predicted_logprobs(
    model: PreTrainedModel,
    sequences: SequenceBatch,
    *,
    temperature: float = 1.0,
    masked_token_ids: Sequence[int] = (),
) -> Float[Tensor, "batch time vocabulary"]:
    """Return log pi(. | x, y_<t), the full distribution at every position from the first response token of any row.

    ``temperature`` and ``masked_token_ids`` (tokens that the engine must not sample) must equal the engine's, so that
    both use the same distribution. No logits are computed before the first response token.
    Shapes: token ids [B, T] -> float32 [B, T - first_response(sequences), V].
    """
    first = first_response(sequences)
    predicting = torch.arange(first - 1, sequences.token_ids.shape[1] - 1, device=sequences.token_ids.device)
    logits = model(
        input_ids=sequences.token_ids,
        attention_mask=sequences.attention_mask,
        logits_to_keep=predicting,
        use_cache=False,
    ).logits
    logits = sampling_logits(logits, temperature=temperature, masked_token_ids=masked_token_ids)
    return log_probabilities(logits)


def first_response(sequences: SequenceBatch) -> int:
    """Return the position of the first response token of any row. Raises ``ValueError`` if it is 0."""
    first = int(sequences.response_mask.any(0).nonzero()[0])
    if first == 0:
        raise ValueError("a response cannot start at position 0: its first token needs a prompt to be predicted from")
    return first


def policy_logprobs(
    model: PreTrainedModel,
    sequences: SequenceBatch,
    *,
    temperature: float = 1.0,
    masked_token_ids: Sequence[int] = (),
    chunk_tokens: int | None = None,
) -> Float[Tensor, "batch time"]:
    """Return log pi(y_t | x, y_<t) of every response token, zero elsewhere; arguments as in ``predicted_logprobs``.

    ``chunk_tokens``: compute the logits of this many response tokens at a time; None: of all at once.
    Shapes: token ids [B, T] -> float32 [B, T]; entry t belongs to token t.
    """
    if chunk_tokens is not None:
        head = sampling_head(model, temperature=temperature, masked_token_ids=masked_token_ids)
        hidden, targets = gathered_hidden(model, sequences), response_tokens(sequences)
        return at_response(chunked_logprobs(hidden, head, targets, size=chunk_tokens), sequences)
    distributions = predicted_logprobs(model, sequences, temperature=temperature, masked_token_ids=masked_token_ids)
    return sampled_logprobs(distributions, sequences, masked_token_ids=masked_token_ids)


def sampled_logprobs(
    distributions: Float[Tensor, "batch predicted vocabulary"],
    sequences: SequenceBatch,
    *,
    masked_token_ids: Sequence[int] = (),
) -> Float[Tensor, "batch time"]:
    """Select the response tokens' entries of ``predicted_logprobs``, zero elsewhere: [B, T]."""
    first, mask = first_response(sequences), sequences.response_mask
    targets = sequences.token_ids[:, first:]
    if masked_token_ids:
        # Padding may be a masked token, whose log-prob of minus infinity must not reach the gradient.
        allowed = min(set(range(len(masked_token_ids) + 1)) - set(masked_token_ids))
        targets = targets.masked_fill(~mask[:, first:], allowed)
    logprobs = distributions.gather(-1, targets[..., None]).squeeze(-1).masked_fill(~mask[:, first:], 0.0)
    return torch.nn.functional.pad(logprobs, (first, 0))


def response_hidden(model: PreTrainedModel, sequences: SequenceBatch) -> Float[Tensor, "tokens width"]:
    """Return the last hidden states that predict the N response tokens, concatenated over rows: [N, W]."""
    first_response(sequences)  # raises for a response without a prompt
    body = model.base_model(input_ids=sequences.token_ids, attention_mask=sequences.attention_mask, use_cache=False)
    return body.last_hidden_state[:, :-1][sequences.response_mask[:, 1:]]


def gathered_hidden(model: PreTrainedModel, sequences: SequenceBatch) -> Float[Tensor, "tokens width"]:
    """Return ``response_hidden`` of a model that may be sharded: its own method then gathers the weights."""
    method = getattr(model, "response_hidden", None)
    return response_hidden(model, sequences) if method is None else method(sequences)


def response_tokens(sequences: SequenceBatch) -> Int[Tensor, " tokens"]:
    """Return the response tokens in the order of ``response_hidden``: [N]."""
    return sequences.token_ids[sequences.response_mask]


def at_response(values: Float[Tensor, " tokens"], sequences: SequenceBatch) -> Float[Tensor, "batch time"]:
    """Scatter values in the order of ``response_hidden`` to their tokens' positions, zero elsewhere: [N] -> [B, T]."""
    mask = sequences.response_mask
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


def sampling_head(model: PreTrainedModel, *, temperature: float, masked_token_ids: Sequence[int]) -> Head:
    """Return a function from hidden states to the logits of the sampling distribution."""
    output_layer = model.get_output_embeddings()
    return lambda hidden: sampling_logits(
        output_layer(hidden), temperature=temperature, masked_token_ids=masked_token_ids
    )


def chunked_policy_logprobs_and_kl(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    sequences: SequenceBatch,
    *,
    temperature: float,
    masked_token_ids: Sequence[int],
    chunk_tokens: int,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """Return both models' log-probs and KL(model || reference) at response tokens, zero elsewhere: [B, T] each."""
    heads = [
        sampling_head(each, temperature=temperature, masked_token_ids=masked_token_ids) for each in (model, reference)
    ]
    hidden = gathered_hidden(model, sequences)
    with torch.no_grad():
        anchors = gathered_hidden(reference, sequences)
    logprobs, reference_logprobs, distance = chunked_logprobs_and_kl(
        hidden, heads[0], anchors, heads[1], response_tokens(sequences), size=chunk_tokens
    )
    return (
        at_response(logprobs, sequences),
        at_response(reference_logprobs.detach(), sequences),
        at_response(distance, sequences),
    )
