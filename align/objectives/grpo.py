"""GRPO: DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models, arXiv 2402.03300.

advantage = (reward - mean(reward)) / (std(reward) + eps)                       over the responses of a group
ratio = exp(logprob - old_logprob)                                              of each token
loss = -min(ratio * advantage, clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)
loss = min(loss, -dual_clip * advantage) where advantage < 0                    with dual_clip (arXiv 1912.09729)
"""

from __future__ import annotations

import math

from align.losses.loss import Aggregation, Denominator
from align.losses.surrogate import clipped_surrogate
from align.objectives.objective import Objective
from align.ranges import ClipHigh, ClipLow, DualClip, Eps, Std
from align.transforms.advantage import group_advantage


def grpo(
    *,
    std: Std = "population",
    eps: Eps = 0.0,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = math.inf,
    aggregation: Aggregation = "token-mean",
    denominator: Denominator = "full",
) -> Objective:
    """Every token of a response gets the response's reward, normalised within its group.

    The paper averages within a response first: `aggregation: seq-mean-token-mean`. It adds a KL term to the
    reference: `add: [{kl_policy_ref: {coef: 0.04}}]`.

    Paper: GRPO, arXiv 2402.03300.
    Limit: it is the baseline that most others here have as their limit.
    """
    loss = clipped_surrogate(
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        aggregation=aggregation,
        denominator=denominator,
    )
    return Objective("grpo", chain=(group_advantage(std=std, eps=eps),), losses=(loss,))
