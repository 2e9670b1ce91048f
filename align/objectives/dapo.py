"""DAPO: An Open-Source LLM Reinforcement Learning System at Scale, arXiv 2503.14476.

    advantage = (reward - mean(reward)) / (std(reward) + eps)                       over the responses of a group
    selected = the tokens of responses that were not truncated
    ratio = exp(logprob - old_logprob)                                              of each token
    loss = -min(ratio * advantage, clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)

with clip_high > clip_low, averaged over the selected tokens of the whole batch.
"""

from __future__ import annotations

import math

from align.losses.surrogate import clipped_surrogate
from align.objectives.objective import Objective
from align.ranges import ClipHigh, ClipLow, DualClip, Eps, Std
from align.transforms.advantage import group_advantage
from align.transforms.keep import mask_truncated


def dapo(
    *,
    std: Std = "population",
    eps: Eps = 0.0,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.28,
    dual_clip: DualClip = math.inf,
) -> Objective:
    """GRPO with a higher upper clip, a mean over tokens, and truncated responses masked.

    Its dynamic sampling is `sampling: {dynamic_sampling: {rounds: 4}}`, its overlong penalty the reward
    `rewards.length:soft_overlong`. verl's DAPO scripts have `std: sample`, `eps: 1.0e-6` and `dual_clip: 10`, and
    penalise cut responses without masking them: that is `grpo` with these and `clip_high: 0.28`. The scripts of KTAE on
    DAPO are in `ktae`.

    Paper: DAPO, arXiv 2503.14476.
    Limit: clip_high = clip_low and nothing truncated is GRPO.
    """
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip, denominator="selected")
    return Objective("dapo", chain=(group_advantage(std=std, eps=eps), mask_truncated()), losses=(loss,))
