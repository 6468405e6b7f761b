"""SeqGAN's synthetic experiment (Yu et al. 2017, arXiv 1609.05473, section 4) at its sizes.

    python experiments/seqgan/oracle.py --seed 0 --out runs/seqgan_oracle/0 [--oracle FILE] [--smoke] [--steps 300 ...]

An oracle, an LSTM whose weights are all drawn from N(0, 1), writes the real data: 10,000 sequences of 20 tokens out of
5,000. A generator of the same shape is pre-trained by maximum likelihood (MLE), then trained against a CNN with
SeqGAN's Monte-Carlo policy gradient. Two figures, in nats a token, at every stage:

    NLL_oracle = -mean log p_oracle(y), y ~ generator      quality: falls as well when the generator loses variety
    NLL_gen    = -mean log p_generator(y), y ~ oracle      coverage of held-out real sequences: rises when it does

Since a colder MLE model lowers NLL_oracle as well, it is measured at falling temperatures in the same plane
("Language GANs Falling Short", Caccia et al. 2018, arXiv 1811.02549), its NLL_gen under the scaled logits; so is the
MLE epoch of the lowest NLL_gen, which has not yet begun to overfit.

``--oracle`` takes a safetensors file with the weights of ``LstmForCausalLM``, float32, V tokens, H = E = 32:
``embedding.weight`` [V, E], ``lstm.weight_ih_l0`` [4H, E], ``lstm.weight_hh_l0`` [4H, H], ``lstm.bias_ih_l0`` [4H],
``lm_head.weight`` [V, H], ``lm_head.bias`` [V], and optionally ``lstm.bias_hh_l0`` [4H] (zero if absent). The 4H rows
are input, forget, cell and output gate, in this order. From the TensorFlow code of SeqGAN (``target_params.pkl``:
embeddings, then W, U, b of input, forget, output gate and cell, then W, b of the output): stack W.T of input, forget,
cell, output, likewise U.T and b, and transpose the output's W. Every model starts from token 0.

Writes ``result.json``, ``picture.png``, ``generator.safetensors`` and the best MLE epochs, ``mle_*.safetensors`` (taken
up by a second run with the same pre-training), under ``--out``. Exits 1 when the best adversarial step lies less than
0.25 below the best MLE epoch in NLL_oracle. One seed gives one result, on one machine and number of threads.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from report import BAR, MEASURES, at_equal, draw, table
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training import Adversary, Oracle, Report, Settings, load_oracle, new_lstm, pretrain, weights_of

from rlgaf_ray.training.memory import keep_freed_memory

TEMPERATURES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)

SMOKE = replace(
    Settings(),
    vocabulary=100,
    num_real=256,
    num_held_out=64,
    mle_epochs=2,
    pretrain_steps=3,
    steps=4,
    discriminator_steps=1,
    batch=16,
    completions=2,
    filters=8,
    measured=64,
    measured_at_the_end=128,
    measure_every=2,
)


class Run:
    """One seed: its phases in order, what they found, and the files."""

    def __init__(self, settings: Settings, seed: int, oracle_file: Path | None, folder: Path) -> None:
        self.settings, self.seed, self.folder, self.console = settings, seed, folder, Console()
        folder.mkdir(parents=True, exist_ok=True)
        self.oracle = Oracle(load_oracle(oracle_file, settings, seed), settings, torch.Generator().manual_seed(seed))
        self.generator = new_lstm(settings, seed=seed)
        self.result: dict = {
            "seed": seed,
            "oracle": "drawn from N(0, 1)" if oracle_file is None else str(oracle_file),
            "threads": torch.get_num_threads(),
            "settings": asdict(settings),
            "references": self.oracle.references(),
        }

    def maximum_likelihood(self) -> None:
        """Pre-training, or what an earlier run with the same settings left of it."""
        files = {measure: self.folder / f"mle_{measure}.safetensors" for measure in ("nll_oracle", "nll_gen")}
        wanted = {name: value for name, value in self.result.items() if name != "settings"}
        wanted["settings"] = {name: getattr(self.settings, name) for name in MLE_SETTINGS}
        if all(file.exists() for file in files.values()):
            with safe_open(files["nll_oracle"], "pt") as opened:
                kept = json.loads(opened.metadata()["run"])
            if kept["of"] == wanted:
                self.console.print(f"MLE: taken up from {self.folder}")
                self.best = {measure: load_file(file) for measure, file in files.items()}
                self.result["mle"] = kept["mle"]
                return
        start = time.perf_counter()
        with progress(self.console, "MLE", self.settings.mle_epochs) as report:
            history, self.best = pretrain(self.generator, self.oracle, self.settings, report)
        self.result["mle"] = {"history": history, "seconds": time.perf_counter() - start}
        run = json.dumps({"of": wanted, "mle": self.result["mle"]})
        for measure, file in files.items():
            save_file(self.best[measure], file, metadata={"run": run})

    def sweep(self) -> None:
        """Both best epochs again, on many samples, at every temperature."""
        self.oracle.rng.manual_seed(self.seed + 1)
        self.result["sweep"] = {}
        for measure, weights in self.best.items():
            self.generator.load_state_dict(weights)
            self.result["sweep"][measure] = [
                {"temperature": temperature, **self.oracle.measure(self.generator, temperature=temperature, final=True)}
                for temperature in TEMPERATURES
            ]

    def adversarial(self) -> None:
        """From the epoch that held-out real data chooses, as early stopping does: that needs no oracle."""
        settings, start = self.settings, time.perf_counter()
        self.oracle.rng.manual_seed(self.seed + 2)
        torch.manual_seed(self.seed)  # dropout
        self.generator.load_state_dict(self.best["nll_gen"])
        adversary = Adversary(self.generator, self.oracle, settings, self.seed)
        with progress(self.console, "discriminator", settings.pretrain_steps) as report:
            for step in range(1, settings.pretrain_steps + 1):
                metrics = adversary.update_discriminator()
                report(step, metrics)
        history: list[dict[str, float]] = [{"step": 0, **self.oracle.measure(self.generator), **metrics}]
        best, best_step = weights_of(self.generator), 0
        with progress(self.console, "adversarial", settings.steps) as report:
            for step in range(1, settings.steps + 1):
                adversary.update_generator(step - 1)
                metrics = mean([adversary.update_discriminator() for _ in range(settings.discriminator_steps)])
                if step % settings.measure_every == 0 or step == settings.steps:
                    history.append({"step": step, **self.oracle.measure(self.generator), **metrics})
                    if history[-1]["nll_oracle"] == min(point["nll_oracle"] for point in history):
                        best, best_step = weights_of(self.generator), step
                report(step, history[-1])
                if step - best_step >= settings.patience:
                    break
        last = self.oracle.measure(self.generator, final=True)
        self.generator.load_state_dict(best)
        self.result["adversarial"] = {
            "history": history,
            "last": {"step": history[-1]["step"], **last},
            "best": {"step": best_step, **self.oracle.measure(self.generator, final=True)},
            "seconds": time.perf_counter() - start,
        }
        save_file(best, self.folder / "generator.safetensors")

    def conclude(self) -> float:
        """How far the best adversarial step lies below the best MLE epoch.

        Both are chosen by NLL_oracle on the curve, and measured again on more and fresh samples.
        """
        best, sweeps = self.result["adversarial"]["best"], self.result["sweep"]
        self.result["gain"] = sweeps["nll_oracle"][0]["nll_oracle"] - best["nll_oracle"]
        self.result["mle_at_equal_nll_gen"] = {
            measure: at_equal(sweep, "nll_gen", best["nll_gen"]) for measure, sweep in sweeps.items()
        }
        (self.folder / "result.json").write_text(json.dumps(self.result, indent=1) + "\n")
        draw(self.result, self.folder / "picture.png")
        self.console.print(table(self.result))
        return self.result["gain"]


MLE_SETTINGS = (  # what pre-training depends on
    *("vocabulary", "length", "hidden", "num_real", "num_held_out", "measured"),
    *("batch", "mle_epochs", "mle_patience", "mle_learning_rate"),
)


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


@contextmanager
def progress(console: Console, name: str, total: int) -> Iterator[Report]:
    """A bar; where the screen is a file, lines."""
    at_column = TextColumn("{task.fields[at]}")
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), at_column)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=total, at="")

        def report(done: int, measures: dict[str, float]) -> None:
            at = "  ".join(f"{key} {measures[key]:.3f}" for key in SHOWN if key in measures)
            bar.update(task, completed=done, at=at)
            if not console.is_terminal and (done % max(1, total // 12) == 0 or done == total):
                console.print(
                    f"{time.strftime('%H:%M:%S')} {name} {done}/{total}  {at}", highlight=False, soft_wrap=True
                )

        yield report


SHOWN = (*MEASURES, "accuracy", "logit_real", "logit_fake")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--oracle", type=Path, help="a safetensors file; drawn from the seed if not given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="a small size, for tests: seconds")
    for field in fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), help=f"{field.default}")
    options = vars(parser.parse_args(arguments))
    base = SMOKE if options["smoke"] else Settings()
    given = {field.name: options[field.name] for field in fields(Settings) if options[field.name] is not None}
    torch.set_num_threads(options["threads"])
    keep_freed_memory()
    run = Run(replace(base, **given), options["seed"], options["oracle"], options["out"])
    run.maximum_likelihood()
    run.sweep()
    run.adversarial()
    return 0 if run.conclude() >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
