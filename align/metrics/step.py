"""Metrics of a step: rewards and lengths of what was sampled, tokens with a gradient, memory."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import get_args

import torch

from align import ops
from align.config.recipe import RewardFunction
from align.data.prompts import Ended
from align.rollout.rollouts import Known
from align.rollout.sources import Collected, SourceBatch


def peak_memory() -> float:
    """GiB that this process held at its peak: of the GPU's memory where it has one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def rollout_metrics(collected: Sequence[Collected], step: int) -> dict[str, float]:
    """{metric: value} of all that was sampled in a step: reward and its components, length, truncation, failures.

    `step` counts from 0.
    """
    sampled = [rollout for source in collected for rollout in source.sampled]
    rewards = next((source.rewards for source in collected if source.rewards), ())
    if not sampled:
        return {}
    lags = [step - at for r in sampled if (at := r.response.policy_step) is not None]
    lag = {"response/lag": fmean(lags)} if lags else {}
    return {**_described(sampled), **lag, **episode_metrics(sampled), **variance_shares(sampled, rewards)}


def episode_metrics(sampled: Sequence[Known]) -> dict[str, float]:
    """{`episode/...`: mean over episodes that did not break off}: turns, tokens of others, tool calls, how they ended.

    `episode/success` is the fraction of those whose environment says so. Empty where there are no episodes.
    """
    played = [r.response for r in sampled if r.response.episode and r.response.episode.why is None]
    if not played:
        return {}
    out = {"turns": fmean(response.turn_count for response in played)}
    out["environment_tokens"] = fmean(response.size - response.length for response in played)
    ways = [how for how in get_args(Ended) if how != "failed"]
    out |= {f"ended/{how}": fmean(response.episode.ended == how for response in played) for how in ways}
    told = [response.episode.success for response in played if response.episode.success is not None]
    if told:
        out["success"] = fmean(told)
    if calls := sum(response.episode.calls for response in played):
        failed = sum(response.episode.failed_calls for response in played)
        out |= {"calls": calls / len(played), "valid_calls": 1 - failed / calls}
    return {f"episode/{name}": value for name, value in out.items()}


def variance_shares(sampled: Sequence[Known], rewards: Sequence[RewardFunction]) -> dict[str, float]:
    """{`rewards/NAME/share`: fraction of the variance of the weighted sum that is due to a reward}; together 1.

    Empty for fewer than two rewards with a weight, and where the sum is constant up to rounding: what is left of its
    variance there is noise, of which a reward may have any multiple.
    """
    weighed = [reward for reward in rewards if reward.weight]
    rated = [r for r in sampled if r.reward is not None]
    sums = torch.tensor([r.reward for r in rated])
    if len(weighed) < 2 or not rated or ops.same_up_to_rounding(sums.min(), sums.max()):
        return {}
    mean = fmean(r.reward for r in rated)
    variance = sum((r.reward - mean) ** 2 for r in rated)
    out = {}
    for reward in weighed:
        common = sum((r.reward - mean) * (r.rewards[reward.name] or 0.0) for r in rated)
        out[f"rewards/{reward.name}/share"] = reward.weight * common / variance
    return out


def signal_metrics(batches: Sequence[SourceBatch], update: Mapping[str, float]) -> dict[str, int]:
    """{`signal/...`: tokens of each objective}: generated, carrying gradient, and those removed (`taken/...`) by what.

    Transforms count in the order of the chain; clipping comes last. `update` is what `Learner.update` returned.
    """
    several = sum(len(batch.credited) for batch in batches) > 1
    out = {}
    for batch in batches:
        collected, tokens = batch.collected, batch.credited[0].signal.generated
        generated = sum(r.response.length for r in collected.sampled) or tokens
        failed = sum(r.response.length for r in collected.rollouts if r.failed)
        unrated = sum(r.response.length for r in collected.rollouts if r.reward is None and not r.failed)
        before = {"dynamic_sampling": generated - unrated - failed - tokens, "unrated": unrated, "failed": failed}
        for credited in batch.credited:
            prefix, name = "signal", ""
            if several:
                prefix, name = f"signal/{credited.objective.name}", f"{credited.objective.name}/"
            signal = credited.signal
            clipped = round(update.get(f"{name}clipped", 0.0) * signal.with_gradient)
            if signal.environment:
                out[f"{prefix}/environment"] = signal.environment
            out[f"{prefix}/generated"] = generated
            out[f"{prefix}/carrying"] = signal.with_gradient - clipped
            removed = {**before, **signal.removed_by, "clipped": clipped}
            out |= {f"{prefix}/taken/{by}": count for by, count in removed.items()}
    return out


def _described(sampled: Sequence[Known]) -> dict[str, float]:
    """The metrics of rollouts without their shares of variance."""
    rated = [r.reward for r in sampled if r.reward is not None]
    judged = [r for r in sampled if not r.failed]
    out = {}
    if rated:
        spread = torch.tensor(rated, dtype=torch.float64).std(correction=0)
        out |= {"reward/mean": fmean(rated), "reward/std": float(spread)}
    if judged:
        out["correct"] = fmean(r.correct for r in judged)
    out |= {
        "response/length": fmean(r.response.length for r in sampled),
        "response/length_max": max(r.response.length for r in sampled),
        "response/truncated": fmean(r.response.truncated for r in sampled),
        "response/unrated": len(judged) - len(rated),
        "response/failed": len(sampled) - len(judged),
        "tokens/generated": (tokens := sum(r.response.length for r in sampled)),
    }
    if tokens:  # nats a token, estimated from what was sampled
        out["response/entropy"] = -sum(r.response.nats for r in sampled) / tokens
    for name in sampled[0].rewards:
        values = [r.rewards[name] for r in sampled if r.rewards[name] is not None]
        if values:
            out[f"rewards/{name}"] = fmean(values)
        out[f"rewards/{name}/failed"] = sum(name in r.failed for r in sampled)
    return out
