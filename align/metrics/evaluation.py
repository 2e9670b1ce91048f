"""Metrics of a held-out evaluation: rewards, pass@k, length and truncation, sampled and greedy; pairs; KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from statistics import fmean

from torch import Tensor

from align.metrics.interval import interval
from align.rollout.rollouts import Rollout

EPISODES = ("success", "turns", "environment_tokens")  # what is measured of episodes besides


def pass_at(k: int, correct: Sequence[bool]) -> float:
    """Probability in [0, 1] that one of k responses drawn without replacement is correct (Chen et al. 2021, eq. 1).

    Needs at least k responses.
    """
    n, c = len(correct), sum(correct)
    return 1.0 - comb(n - c, k) / comb(n, k)


def summarise(sampled: Sequence[Rollout], greedy: Sequence[Rollout], ks: Sequence[int]) -> dict[str, float]:
    """{`eval/...`: mean over prompts}, with 95% bootstrap intervals over prompts for those that the report shows.

    A response whose reward failed is neither right nor wrong; prompts with fewer than k others have no pass@k.
    """
    groups: dict[int, list[Rollout]] = {}
    for rollout in sampled:
        groups.setdefault(rollout.group, []).append(rollout)
    rows = list(groups.values())
    judged = [[r.correct for r in row if not r.failed] for row in rows]
    measures = {
        "reward": [_mean(r.reward for r in row) for row in rows],
        "length": [fmean(r.response.length for r in row) for row in rows],
        "truncated": [fmean(r.response.truncated for r in row) for row in rows],
        **{f"pass@{k}": [pass_at(k, row) if len(row) >= k else None for row in judged] for k in ks},
        "greedy_reward": [_mean([r.reward]) for r in greedy],
        "greedy_pass@1": [None if r.failed else float(r.correct) for r in greedy],
        "greedy_length": [float(r.response.length) for r in greedy],
        "greedy_truncated": [float(r.response.truncated) for r in greedy],
        **_of_episodes(rows, greedy),
    }
    out = {}
    for name, values in measures.items():
        values = [value for value in values if value is not None]
        if values:
            out[name], out[f"{name}_low"], out[f"{name}_high"] = interval(values)
    out["failed"] = sum(bool(r.failed) for r in (*sampled, *greedy))
    for name in sampled[0].rewards:
        component = _mean(r.rewards[name] for r in sampled)
        if component is not None:
            means = [_mean(r.rewards[name] for r in row) for row in rows]
            _, low, high = interval([mean for mean in means if mean is not None])
            out |= {f"rewards/{name}": component, f"rewards/{name}_low": low, f"rewards/{name}_high": high}
    return {f"eval/{name}": value for name, value in out.items()}


def _of_episodes(rows: Sequence[Sequence[Rollout]], greedy: Sequence[Rollout]) -> dict[str, list[float | None]]:
    """{measure: a value a prompt} of episodes that did not break off; nothing where responses are none."""
    if not any(rollout.response.episode for rollout in greedy):
        return {}
    out = {}
    for prefix, groups in (("", rows), ("greedy_", [[rollout] for rollout in greedy])):
        played = [[r.response for r in group if not r.response.episode.why] for group in groups]
        out |= {
            f"{prefix}success": [_mean(r.episode.success for r in group) for group in played],
            f"{prefix}turns": [_mean(r.turn_count for r in group) for group in played],
            f"{prefix}environment_tokens": [_mean(len(r.ids) - r.length for r in group) for group in played],
        }
    return out


def names(rewards: Sequence[str], ks: Sequence[int]) -> list[str]:
    """Names of all metrics that `summarise` and `drift` can give."""
    greedy = ["greedy_reward", "greedy_pass@1", "greedy_length", "greedy_truncated"]
    shown = ["reward", "length", "truncated", *(f"pass@{k}" for k in ks), *greedy, "kl_k1_policy_ref"]
    shown += [f"rewards/{reward}" for reward in rewards]
    shown += [f"{prefix}{name}" for prefix in ("", "greedy_") for name in EPISODES]
    return [*(f"eval/{name}{end}" for name in shown for end in ("", "_low", "_high")), "eval/failed"]


def drift(groups: Sequence[int], kl: Sequence[float]) -> dict[str, float]:
    """{metric: KL(policy || reference) in nats a response}, estimated by k1, with its interval over prompts.

    `groups` numbers the prompt of each response, `kl` is its log-probability under the policy less the reference's.
    """
    rows: dict[int, list[float]] = {}
    for group, value in zip(groups, kl, strict=True):
        rows.setdefault(group, []).append(value)
    names = ("eval/kl_k1_policy_ref", "eval/kl_k1_policy_ref_low", "eval/kl_k1_policy_ref_high")
    return dict(zip(names, interval([fmean(row) for row in rows.values()]), strict=True))


def pair_summary(loss: float, measured: Mapping[str, Tensor]) -> dict[str, float]:
    """The loss on held-out pairs and the mean of each measure, with intervals for accuracy and margin."""
    out = {"loss": loss}
    for name, values in measured.items():
        if len(values) and not name.endswith(("_min", "_max")):
            out[name] = float(values.mean())
            if name.rpartition("/")[2] in ("accuracy", "margin", "logit_accuracy"):
                _, out[f"{name}_low"], out[f"{name}_high"] = interval(values.tolist())
    return out


def comparison(before: dict[str, float], after: dict[str, float]) -> list[dict]:
    """Rows of the final table: the metrics that both evaluations have, with their intervals."""
    names = [name for name in before if f"{name}_low" in before and name in after]
    return [
        {
            "name": name.removeprefix("eval/"),
            "before": before[name],
            "before_interval": [before[f"{name}_low"], before[f"{name}_high"]],
            "after": after[name],
            "after_interval": [after[f"{name}_low"], after[f"{name}_high"]],
        }
        for name in names
    ]


def _mean(values) -> float | None:
    """The mean of values that are not None; None where all are."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
