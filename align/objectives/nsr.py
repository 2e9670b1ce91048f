"""NSR, PSR, W-REINFORCE: The Surprising Effectiveness of Negative Reinforcement in LLM Reasoning, arXiv 2506.01347.

    nsr:          advantage = -1 for wrong responses; correct ones are dropped
    psr:          advantage = +1 for correct responses; wrong ones are dropped
    w_reinforce:  advantage = positive_weight for correct responses, -1 for wrong ones

    ratio = exp(logprob - old_logprob)                                              of each token
    loss = -min(ratio * advantage, clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)

The paper's losses are the probabilities themselves. The official code and this loss have the ratio: the same direction
of the gradient, without the factor of the token's own probability.
"""

from __future__ import annotations

import math

from align.losses.loss import Denominator
from align.losses.surrogate import clipped_surrogate
from align.objectives.objective import Objective
from align.ranges import ClipHigh, ClipLow, Coef, DualClip
from align.transforms.advantage import outcome_advantage
from align.transforms.keep import keep_outcome


def nsr(
    *,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = math.inf,
    denominator: Denominator = "selected",
) -> Objective:
    """Only wrong responses teach, with an advantage of -1.

    The official code drops the correct rows and divides by what is left (`selected`).

    Paper: NSR, arXiv 2506.01347.
    Limit: with the full denominator it is w_reinforce with positive_weight 0.
    """
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip, denominator=denominator)
    return Objective("nsr", chain=(keep_outcome(outcome="wrong"), outcome_advantage()), losses=(loss,))


def psr(*, clip_low: ClipLow = 0.2, clip_high: ClipHigh = 0.2, denominator: Denominator = "selected") -> Objective:
    """Only correct responses teach, with an advantage of +1.

    Paper: PSR, arXiv 2506.01347.
    Limit: PSR and NSR with the full denominator add up to w_reinforce with positive_weight 1.
    """
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high, denominator=denominator)
    return Objective("psr", chain=(keep_outcome(outcome="correct"), outcome_advantage()), losses=(loss,))


def w_reinforce(
    *,
    positive_weight: Coef = 0.1,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = math.inf,
) -> Objective:
    """Correct responses count `positive_weight`, the paper's lambda, and wrong ones -1.

    Paper: W-REINFORCE, arXiv 2506.01347.
    Limit: 1 is REINFORCE on rewards of +1 and -1, 0 is NSR with the full denominator.
    """
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    return Objective("w_reinforce", chain=(outcome_advantage(correct=positive_weight, wrong=-1.0),), losses=(loss,))
