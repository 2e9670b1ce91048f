"""GRPO-N: The Debate on RLVR Reasoning Capability Boundary: Shrinkage, Expansion, or Both? A Two-Stage Dynamic View,
arXiv 2510.04028.

    advantage = min((reward - mean(reward)) / (std(reward) + eps), 0)               over the responses of a group
    selected = the tokens whose advantage is below 0
    loss = GRPO's

Reconstructed: the paper's abstract and reviews were read, not its equations.
"""

from __future__ import annotations

import math

from align.losses.loss import Denominator
from align.losses.surrogate import clipped_surrogate
from align.objectives.objective import Objective
from align.ranges import ClipHigh, ClipLow, DualClip, Eps, Std
from align.transforms.advantage import group_advantage, sign_filter


def grpo_n(
    *,
    std: Std = "population",
    eps: Eps = 0.0,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = math.inf,
    denominator: Denominator = "full",
) -> Objective:
    """GRPO's negative advantages only, min(A, 0).

    `denominator`: `full` counts the tokens of all responses, `selected` only those of responses below their group's
    mean, a larger step. Which of the two the paper has was not in what was read.

    Paper: GRPO-N, arXiv 2510.04028 (reconstructed).
    Limit: together with its positive half it is GRPO.
    """
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip, denominator=denominator)
    chain = (group_advantage(std=std, eps=eps), sign_filter(sign="negative"))
    return Objective("grpo_n", chain=chain, losses=(loss,))
