"""REINFORCE: Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning, Williams 1992.

    advantage = reward
    ratio = exp(logprob - old_logprob)                                              of each token
    loss = -min(ratio * advantage, clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)

Where the ratio is 1, the gradient of the loss is the paper's, -advantage * grad(logprob).
"""

from __future__ import annotations

import math

from align.losses.loss import Aggregation
from align.losses.surrogate import clipped_surrogate
from align.objectives.objective import Objective
from align.ranges import ClipHigh, ClipLow, DualClip
from align.transforms.advantage import reward_advantage


def reinforce(
    *,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = math.inf,
    aggregation: Aggregation = "token-mean",
) -> Objective:
    """The reward itself as every token's credit, without a baseline.

    Paper: REINFORCE, Williams 1992.
    Limit: rewards of +1 and -1 are w_reinforce with positive_weight 1.
    """
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip, aggregation=aggregation)
    return Objective("reinforce", chain=(reward_advantage(),), losses=(loss,))
