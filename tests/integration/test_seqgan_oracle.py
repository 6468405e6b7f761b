"""SeqGAN's synthetic experiment at a small size, and its fast LSTM against the plain model."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlgaf_ray.models.generator import policy_logprobs
from rlgaf_ray.models.lstm import LstmForCausalLM, build_lstm
from rlgaf_ray.types import SequenceBatch

EXPERIMENT = Path(__file__).parents[2] / "experiments/seqgan"


@pytest.fixture(autouse=True)
def experiment_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENT))


def lstm(vocabulary: int, *, deviation: float = 1.0) -> LstmForCausalLM:
    return build_lstm(
        vocab_size=vocabulary,
        end_of_text_id=0,
        seed=1,
        embedding_size=6,
        hidden_size=6,
        initializer_range=deviation,
    )


def with_start(tokens: torch.Tensor) -> SequenceBatch:
    whole = torch.nn.functional.pad(tokens, (1, 0))
    attention = torch.ones_like(whole)
    response = attention.bool()
    response[:, 0] = False
    return SequenceBatch(whole, attention, response)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_fast_logprobs_and_their_gradient_are_the_models(temperature: float) -> None:
    from fast_lstm import mean_nll, sequence_logprobs

    model, tokens = (
        lstm(50),
        torch.randint(50, (9, 11), generator=torch.Generator().manual_seed(0)),
    )  # 99 rows: 2 slices
    expected = policy_logprobs(model, with_start(tokens), temperature=temperature)[:, 1:]
    found = sequence_logprobs(model, tokens, temperature=temperature)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True))

    weights = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(gradients((found * weights).sum()), gradients((expected * weights).sum()), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    if temperature == 1.0:
        torch.testing.assert_close(mean_nll(model, tokens), -found.mean())
        for ours, theirs in zip(gradients(mean_nll(model, tokens) * 3), gradients(-3 * expected.mean()), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def exact(model: LstmForCausalLM, length: int, temperature: float = 1.0) -> dict[tuple[int, ...], float]:
    vocabulary = model.config.vocab_size
    every = torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))
    with torch.no_grad():
        logprobs = policy_logprobs(model, with_start(every), temperature=temperature).sum(1)
    return dict(zip(map(tuple, every.tolist()), logprobs.exp().tolist(), strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_samples_have_the_models_distribution(temperature: float) -> None:
    from fast_lstm import LstmSampler

    model, size = lstm(6), 20_000
    sampler = LstmSampler(model, temperature=temperature)
    assert 1 < sampler.block < 6  # blocks and tokens inside them are both drawn
    samples = sampler.sample(size, 2, torch.Generator().manual_seed(0))
    found, counts = samples.unique(dim=0, return_counts=True)
    counted = dict(zip(map(tuple, found.tolist()), counts.tolist(), strict=True))
    for sequence, probability in exact(model, 2, temperature).items():
        deviation = (size * probability * (1 - probability)) ** 0.5
        assert counted.get(sequence, 0) == pytest.approx(size * probability, abs=4.5 * deviation + 1), sequence


def test_completions_keep_their_prefix_and_follow_the_model() -> None:
    from fast_lstm import LstmSampler

    model, num_completions = lstm(6), 6_000
    tokens = torch.tensor([[1, 2, 3], [4, 5, 0]])
    whole = LstmSampler(model).complete(tokens, [1, 2], num_completions, torch.Generator().manual_seed(0))
    assert whole.shape == (2, 2, num_completions, 3)
    probabilities = exact(model, 3)
    for place, length in enumerate((1, 2)):
        for row in (0, 1):
            prefix = tokens[row, :length]
            assert bool((whole[place, row, :, :length] == prefix).all())
            share = {s: p for s, p in probabilities.items() if s[:length] == tuple(prefix.tolist())}
            total = sum(share.values())
            for last in range(6):  # the marginal of the last token, given the prefix
                expected = sum(p for s, p in share.items() if s[-1] == last) / total
                found = (whole[place, row, :, -1] == last).float().mean().item()
                deviation = (expected * (1 - expected) / num_completions) ** 0.5
                assert found == pytest.approx(expected, abs=4.5 * deviation + 1e-3)


def test_the_whole_experiment_small(tmp_path: Path) -> None:
    import oracle as experiment

    oracle = build_lstm(
        vocab_size=100, end_of_text_id=0, seed=5, embedding_size=32, hidden_size=32, initializer_range=1
    )
    weights = {name: weight for name, weight in oracle.state_dict().items() if name != "lstm.bias_hh_l0"}
    save_file(weights, tmp_path / "oracle.safetensors")
    arguments = ["--smoke", "--oracle", str(tmp_path / "oracle.safetensors"), "--out", str(tmp_path / "out")]

    def run() -> dict:
        assert experiment.main(arguments) in (0, 1)
        return json.loads((tmp_path / "out" / "result.json").read_text())

    first = run()
    assert [point["step"] for point in first["adversarial"]["history"]] == [0, 2, 4]
    assert first["references"]["real"] < first["references"]["random"]
    assert len(first["mle"]["history"]) == 3  # before the first epoch, and after each of two
    assert set(first["sweep"]) == {"nll_oracle", "nll_gen"}
    sweep = first["sweep"]["nll_oracle"]
    assert sweep[0]["temperature"] == 1.0 and sweep[-1]["entropy"] < sweep[0]["entropy"] - 0.3
    assert sweep[-1]["nll_oracle"] < sweep[0]["nll_oracle"] and sweep[-1]["nll_gen"] > sweep[0]["nll_gen"]
    history = first["adversarial"]["history"]
    assert first["adversarial"]["best"]["step"] == min(history, key=lambda point: point["nll_oracle"])["step"]
    assert first["gain"] == sweep[0]["nll_oracle"] - first["adversarial"]["best"]["nll_oracle"]
    assert (tmp_path / "out" / "picture.png").stat().st_size > 10_000
    assert history[0]["entropy"] != history[-1]["entropy"]  # the generator has moved
    assert set(load_file(tmp_path / "out" / "generator.safetensors")) == set(oracle.state_dict())

    second = run()  # takes up the MLE model, and ends at the same numbers
    assert second["mle"] == first["mle"]
    assert second["adversarial"]["history"] == first["adversarial"]["history"]
    assert second["adversarial"]["last"] == first["adversarial"]["last"]
    assert second["gain"] == first["gain"]

    save_file({**weights, "lm_head.bias": torch.zeros(7)}, tmp_path / "oracle.safetensors")
    with pytest.raises(ValueError, match=r"oracle\.safetensors holds .*\(7,\).* but the oracle needs"):
        experiment.main(arguments)


def test_the_point_of_equal_coverage_lies_between_its_neighbours() -> None:
    from report import at_equal

    sweep = [
        {"temperature": 1.0, "nll_oracle": 9.0, "nll_gen": 7.0},
        {"temperature": 0.8, "nll_oracle": 8.0, "nll_gen": 7.4},
        {"temperature": 0.6, "nll_oracle": 7.6, "nll_gen": 8.4},
    ]
    assert at_equal(sweep, "nll_gen", 7.9) == pytest.approx({"temperature": 0.7, "nll_oracle": 7.8, "nll_gen": 7.9})
    assert at_equal(sweep, "nll_gen", 6.9) is None and at_equal(sweep, "nll_gen", 8.5) is None
