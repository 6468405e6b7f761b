"""The table of metrics: unit, direction and format of each. A test keeps ``docs/metrics.md`` in step with it.

``metric`` returns defaults for a name outside the table, such as a metric of a custom task.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

SCORE = "sweep/score"
VARIANT = re.compile(r"_(?:real|sft|stderr|real_stderr)$")
"""Suffix of a variant (real text, SFT model, standard error), which is formatted like its base metric."""
OWN_SHOWN = 3  # most columns for a task's own metrics in a table with one row per evaluation


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is formatted and judged.

    ``form``: format string of a value; ``head``: column header; ``line``: short description.
    """

    name: str
    unit: str = ""
    form: str = "{:.4g}"
    better: Literal["higher", "lower", ""] = ""
    head: str = ""
    line: str = ""
    ideal: float | None = None  # the value for real text, if known in advance

    @property
    def owner(self) -> str:
        """The component that logs it: the part of the name before the slash."""
        return self.name.partition("/")[0]

    @property
    def percent(self) -> bool:
        """Whether values are in 0 to 100 rather than 0 to 1."""
        return self.unit == "%"

    @property
    def sign(self) -> float:
        """-1 where lower is better, else 1."""
        return -1.0 if self.better == "lower" else 1.0

    @property
    def real(self) -> str | float:
        """The value for real text, or the name of the metric that logs it."""
        return f"{self.name}_real" if self.ideal is None else self.ideal

    @property
    def axis(self) -> str:
        """Axis label of a plot."""
        return self.head if self.unit in ("", "0 to 1") else self.unit.replace("`", "")

    def shown(self, value: float) -> str:
        """The value as text, in the metric's format."""
        return self.form.format(value)


def _plain(unit: str, *names: str, form: str = "{:.4g}") -> list[Metric]:
    return [Metric(name, unit, form) for name in names]


_TABLE = [
    Metric("rollout/response_tokens", "tokens", "{:.1f}", line="response length"),
    Metric("rollout/distinct_2", "share", "{:.3f}", "higher", line="distinct 2-grams of the rollouts"),
    Metric("rollout/samples_per_second", "rollouts/s", "{:.0f}", "higher", "samples/s", "rollouts per second"),
    Metric("rollout/tokens_per_second", "tokens/s", "{:.0f}", "higher"),
    *_plain("share", "rollout/stopped_share", form="{:.3f}"),
    Metric("rollout/degenerate_share", "share", "{:.3f}", "lower"),
    Metric("rollout/identical_share", "share", "{:.3f}", "lower"),
    *_plain("nats/token", "rollout/reference_nll", form="{:.3f}"),
    Metric("rollout/workers_replaced", "workers", "{:.0f}", "lower"),
    Metric("rollout/prompts_repeated", "prompts", "{:.0f}", "lower"),
    Metric("recovery/rollbacks", "times", "{:.0f}", "lower"),
    *_plain("versions", "rollout/staleness"),
    #
    Metric("reward/mean", "of `reward.kind`", "{:+.2f}", "higher", "reward", "reward of the rollouts"),
    Metric("reward/deviation", "of `reward.kind`", "{:.3f}", "higher"),
    Metric("reward/discriminator", "of `reward.kind`", "{:+.2f}", "higher"),
    Metric("reward/clipped_share", "share", "{:.3f}", "lower"),
    *_plain("nats/token", "reward/base_logprob", form="{:.3f}"),
    #
    Metric("generator/loss", "", "{:.3f}", head="loss", line="generator's loss"),
    Metric("generator/kl", "nats/token", "{:.3f}", "lower", "KL", "KL from the SFT model"),
    Metric("generator/kl_exact", "nats/token", "{:.3f}", "lower"),
    Metric("generator/kl_k3", "nats/token", "{:.3f}", "lower"),
    Metric("generator/entropy", "nats/token", "{:.2f}", "higher", "entropy", "entropy of the policy"),
    Metric("generator/engine_logprob_gap", "nats/token", "{:.1e}", "lower"),
    *_plain("nats/token", "generator/demonstration_loss", "generator/pretraining_loss", form="{:.3f}"),
    *_plain("nats/token", "generator/approximate_kl", form="{:.3f}"),
    *_plain("of `reward.kind`", "generator/selection_gain", form="{:.3f}"),
    Metric("generator/preference_accuracy", "share", "{:.2f}", "higher"),
    *_plain("nats", *(f"generator/preference_{name}" for name in ("margin", "chosen_reward", "rejected_reward"))),
    *_plain("", "generator/policy_loss", "generator/kl_coefficient", "generator/advantage_deviation"),
    *_plain("", "generator/grad_norm", "generator/weight_norm", "generator/critic_grad_norm"),
    *_plain("", "generator/learning_rate", "generator/critic_learning_rate"),
    *_plain("", "generator/value_loss", "generator/explained_variance", "generator/ratio"),
    *_plain("", "generator/importance_weight", "generator/relaxation_temperature"),
    *_plain("share", "generator/value_clip_fraction", "generator/clip_fraction", form="{:.3f}"),
    *_plain("nats", "generator/adversarial_loss", form="{:.3f}"),
    *_plain("logit", "generator/soft_logit", "generator/score_gap", form="{:.3f}"),
    Metric("generator/response_tokens", "tokens", "{:.1f}"),
    Metric("generator/non_finite", "0 or 1", "{:.0f}", "lower"),
    Metric("generator/skipped_steps", "count", "{:.0f}", "lower"),
    #
    Metric("discriminator/accuracy", "share", "{:.2f}", head="D accuracy", line="discriminator's accuracy"),
    *_plain("share", *(f"discriminator/accuracy_{rows}" for rows in ("real", "fake", "contrast")), form="{:.2f}"),
    Metric("discriminator/loss", "nats", "{:.3f}", line="discriminator's loss"),
    *_plain("nats", *(f"discriminator/loss_{rows}" for rows in ("real", "fake", "contrast")), form="{:.3f}"),
    *_plain("logit", *(f"discriminator/logit_{rows}" for rows in ("real", "fake", "contrast")), form="{:.3f}"),
    *_plain("nats", "discriminator/negative_risk", form="{:.3f}"),
    *_plain("", "discriminator/grad_norm", "discriminator/learning_rate"),
    *_plain("share", "discriminator/replayed_share", form="{:.3f}"),
    Metric("discriminator/response_tokens", "tokens", "{:.1f}"),
    *_plain("updates", "discriminator/updates", "discriminator/update_rate", "discriminator/skipped_updates"),
    Metric("discriminator/skipped_steps", "count", "{:.0f}", "lower"),
    *_plain("share", "discriminator/held_out_accuracy", form="{:.3f}"),
    *_plain("logit", "discriminator/held_out_logit_gap", form="{:.3f}"),
    Metric("discriminator/overfit_gap", "share", "{:.3f}", "lower"),
    Metric("discriminator/held_out_auc", "share", "{:.3f}", "higher"),
    Metric("discriminator/information", "nats/row", "{:.3f}", "higher"),
    *_plain("share", "discriminator/held_out_auc_interval", form="{:.3f}"),
    *_plain("nats/row", "discriminator/information_interval", form="{:.3f}"),
    #
    Metric("guard/healthy", "0 or 1", "{:.0f}", "higher"),
    Metric("guard/heals", "heals", "{:.0f}", "lower"),
    *_plain("s", "weights/check_seconds", "weights/load_seconds"),
    *_plain("MB", "weights/megabytes", "weights/discriminator_megabytes"),
    *_plain("updates", "weights/discriminator_version"),
    #
    Metric("eval/closeness", "", "{:.3f}", "higher", "closeness", "closeness to real text", ideal=0.0),
    Metric("eval/judge_share", "share", "{:.3f}", "", "linear judge", "judged as wanted (linear judge)"),
    Metric("eval/judge_share_asked_positive", "share", "{:.3f}", line="judged as wanted, positive requested"),
    Metric("eval/judge_share_asked_negative", "share", "{:.3f}", line="judged as wanted, negative requested"),
    Metric("eval/vader_share", "share", "{:.3f}", "", "VADER", "judged as wanted (VADER)"),
    Metric("eval/embedding_share", "share", "{:.3f}", "", "embedding judge", "judged as wanted (embeddings)"),
    Metric("eval/panel_share", "share", "{:.3f}", line="judged as wanted (mean of the judges)"),
    Metric("eval/panel_gap", "share", "{:.3f}", "lower"),
    Metric("eval/gap_closed", "", "{:.1%}", line="derived: gap closed, SFT to real (linear judge)"),
    *_plain("share", "eval/judge_accuracy", "eval/judge_accuracy_window", form="{:.3f}"),
    *_plain("share", "eval/embedding_accuracy_window", form="{:.3f}"),
    Metric("eval/exact_match", "%", "{:.1f}", "higher", "exact match, %", "exact match, %"),
    Metric("eval/exact_match_has_answer", "%", "{:.1f}", "higher"),
    Metric("eval/exact_match_no_answer", "%", "{:.1f}", "higher"),
    Metric("eval/success", "share", "{:.3f}", "higher", "success", "answers that reach the goal"),
    Metric("eval/legal", "share", "{:.3f}", "higher", "legal", "answers with legal moves only"),
    Metric("eval/arrives", "share", "{:.3f}", "higher", "arrives", "answers that end at the goal"),
    Metric("eval/distinct_successes", "walks", "{:.2f}", "higher", line="different successful answers a prompt"),
    Metric("eval/success_entropy", "nats", "{:.2f}", "higher", line="entropy of successful answers"),
    Metric("eval/expert_kl", "nats", "{:.2f}", "lower", "KL to the expert", "KL of successful answers to the expert"),
    Metric("eval/expert_log_ratio", "nats", "{:.2f}", line="log ratio of successful answers to the expert"),
    Metric("eval/f1", "%", "{:.1f}", "higher", "F1, %", "F1, %"),
    Metric("eval/f1_has_answer", "%", "{:.1f}", "higher", line="F1 of answerable questions, %"),
    Metric("eval/f1_no_answer", "%", "{:.1f}", "higher", line="F1 of unanswerable questions, %"),
    Metric("eval/in_context_share", "share", "{:.1%}", "higher", line="answers found in their context"),
    Metric("eval/answer_words", "words", "{:.2f}", line="answer length, words"),
    Metric("eval/length_distance", "words", "{:.3f}", "lower", line="distance to real answer lengths, words"),
    Metric("eval/length_distance_ratio", "", "{:.2f}", "lower"),
    Metric(
        "eval/two_sample_auc",
        "0 to 1",
        "{:.3f}",
        "lower",
        "AUC words",
        "AUC real or generated (bag of words)",
        ideal=0.5,
    ),
    Metric(
        "eval/embedding_two_sample_auc",
        "0 to 1",
        "{:.3f}",
        "lower",
        "AUC embeddings",
        "AUC real or generated (embeddings)",
        ideal=0.5,
    ),
    Metric("eval/two_sample_accuracy", "share", "{:.3f}", "lower", ideal=0.5),
    Metric(
        "eval/real_nll", "nats/token", "{:.3f}", "lower", "NLL of real text", "NLL of held-out real text, nats/token"
    ),
    Metric("eval/perplexity", "", "{:.1f}", line="perplexity under SFT"),
    Metric("eval/perplexity_ratio", "", "{:.2f}", "lower", line="perplexity, ratio to SFT's own"),
    Metric("eval/distinct_1", "share", "{:.3f}", "higher", "distinct-1", "distinct-1"),
    Metric("eval/distinct_2", "share", "{:.3f}", "higher", "distinct-2", "distinct-2"),
    Metric("eval/distinct_2_ratio", "", "{:.2f}", "higher", "distinct-2 ratio", "distinct-2, ratio to SFT's own"),
    Metric("eval/distinct_3", "share", "{:.3f}", "higher", "distinct-3", "distinct-3"),
    Metric("eval/self_bleu", "0 to 1", "{:.3f}", "lower", "self-BLEU", "self-BLEU"),
    Metric("eval/copied", "share", "{:.2%}", "lower", line="8-grams copied from demonstrations"),
    Metric("eval/degenerate_share", "share", "{:.1%}", "lower", line="empty or repeating answers"),
    Metric("eval/response_tokens", "tokens", "{:.1f}", line="response length, tokens"),
    #
    Metric("quick/judge_share", "share", "{:.3f}", head="quick judge"),
    Metric("quick/two_sample_auc", "0 to 1", "{:.3f}", "lower", "quick AUC", ideal=0.5),
    Metric("quick/success", "share", "{:.3f}", "higher", "quick success"),
    Metric("quick/f1", "%", "{:.1f}", "higher", "quick F1, %"),
    Metric("quick/held_out_auc", "share", "{:.3f}", "higher"),
    Metric("quick/information", "nats/row", "{:.3f}", "higher"),
    *_plain("share", "quick/held_out_auc_interval", form="{:.3f}"),
    *_plain("nats/row", "quick/information_interval", form="{:.3f}"),
    #
    Metric(SCORE, "", "{:.3f}", "higher", "score", "score so far"),
    *_plain("s", *(f"time/{part}" for part in ("iteration", "rollout", "score", "reward", "monte_carlo"))),
    *_plain(
        "s",
        *(
            f"time/{part}"
            for part in ("generator_update", "push", "discriminator_wait", "evaluation", "checkpoint", "guards")
        ),
    ),
]


def _named(metric: Metric) -> Metric:
    """Fill in the header and description from the name where the table has none."""
    words = metric.name.partition("/")[2].replace("_", " ") or metric.name
    head = metric.head or words
    return replace(metric, head=head, line=metric.line or head)


METRICS: Mapping[str, Metric] = {metric.name: _named(metric) for metric in _TABLE}


def metric(name: str) -> Metric:
    """Look up a metric by name; a variant (``_real``, ``_stderr``) inherits its base metric, others get defaults."""
    known = METRICS.get(name) or METRICS.get(VARIANT.sub("", name))
    if known is None:
        return _named(Metric(name))
    return known if known.name == name else _named(Metric(name, known.unit, known.form, known.better))


def suggestion(name: str, known: Iterable[str]) -> str:
    """Suggest a replacement for a metric that is not measured: the closest name, or all known ones."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"set it to one of {', '.join(names)}"


def own(logged: Iterable[str]) -> list[str]:
    """Return the evaluation metrics outside the table, which come from a custom task, in logging order."""
    names = (name for name in logged if name.startswith(("eval/", "quick/")) and not VARIANT.search(name))
    return [name for name in dict.fromkeys(names) if name not in METRICS]


def columns(names: Sequence[str], logged: Iterable[str], *, most: int | None = OWN_SHOWN) -> list[Metric]:
    """Return the columns of a table: at most ``most`` of the task's own metrics, then the logged ones of ``names``."""
    logged = list(logged)
    return [metric(name) for name in (*own(logged)[:most], *(name for name in names if name in set(logged)))]
