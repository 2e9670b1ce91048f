"""What a step took from its sources, and the metrics of it."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from align.batch import Batch
from align.calls import RewardFunction
from align.credit import Credited
from align.rollouts import Rollout


@dataclass(frozen=True)
class Taken:
    """One source's share of a step."""

    batch: Batch
    scored: list[Rollout]  # all that were sampled; none of a source of pairs
    rollouts: list[Rollout]  # those in the batch, and those without a reward among them
    credits: list[Credited]


def peak_memory() -> float:
    """GiB: most that this process ever held, of the GPU's memory where it has one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def describe(scored: Sequence[Rollout]) -> dict[str, float]:
    """What was sampled: reward, its components, length, truncation."""
    if not scored:
        return {}
    rated = [r.reward for r in scored if r.reward is not None]
    judged = [r for r in scored if not r.failed]
    out = {
        "reward/mean": fmean(rated),
        "reward/std": float(torch.tensor(rated).std(correction=0)),
        "correct": fmean(r.correct for r in judged),
        "response/length": fmean(len(r.response.ids) for r in scored),
        "response/length_max": max(len(r.response.ids) for r in scored),
        "response/truncated": fmean(r.response.truncated for r in scored),
        "response/unrated": len(judged) - len(rated),
        "response/failed": len(scored) - len(judged),
        "tokens/generated": (tokens := sum(len(r.response.ids) for r in scored)),
    }
    if tokens:  # nats a token, estimated from what was sampled
        out["response/entropy"] = -sum(sum(r.response.logprobs) for r in scored) / tokens
    for name in scored[0].rewards:
        values = [r.rewards[name] for r in scored if r.rewards[name] is not None]
        if values:
            out[f"rewards/{name}"] = fmean(values)
        out[f"rewards/{name}/failed"] = sum(name in r.failed for r in scored)
    return out


def shares(scored: Sequence[Rollout], rewards: Sequence[RewardFunction]) -> dict[str, float]:
    """Of several rewards with a weight, the share of each in the variance of the weighted sum; together 1."""
    weighed = [reward for reward in rewards if reward.weight]
    rated = [r for r in scored if r.reward is not None]
    mean = fmean(r.reward for r in rated) if rated else 0.0
    variance = sum((r.reward - mean) ** 2 for r in rated)
    if len(weighed) < 2 or variance == 0:
        return {}
    out = {}
    for reward in weighed:
        common = sum((r.reward - mean) * (r.rewards[reward.name] or 0.0) for r in rated)
        out[f"rewards/{reward.name}/share"] = reward.weight * common / variance
    return out


def signal(taken: Sequence[Taken], update: dict[str, float]) -> dict[str, int]:
    """Of each source's tokens, how many carry gradient and what took the rest; clipping is the last."""
    several = sum(len(source.credits) for source in taken) > 1
    out = {}
    for source in taken:
        generated = sum(len(r.response.ids) for r in source.scored) or int(source.batch.mask.sum())
        failed = sum(len(r.response.ids) for r in source.rollouts if r.failed)
        unrated = sum(len(r.response.ids) for r in source.rollouts if r.reward is None and not r.failed)
        left_out = generated - unrated - failed - int(source.batch.mask.sum())
        for credited in source.credits:
            prefix, name = "signal", ""
            if several:
                prefix, name = f"signal/{credited.objective.name}", f"{credited.objective.name}/"
            clipped = round(update.get(f"{name}clipped", 0.0) * credited.signal.carrying)
            out[f"{prefix}/generated"] = generated
            out[f"{prefix}/carrying"] = credited.signal.carrying - clipped
            apart = {"dynamic_sampling": left_out, "unrated": unrated, "failed": failed}
            losses = {**apart, **credited.signal.taken, "clipped": clipped}
            out |= {f"{prefix}/taken/{link}": count for link, count in losses.items()}
    return out
