"""RLOO: Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs,
arXiv 2402.14740.

    advantage = reward - mean(reward of the other responses of the group)
    ratio = exp(sum over tokens of (logprob - old_logprob))                         of a response
    loss = -min(ratio * advantage, clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)

averaged over responses. The ratio and its clip are TRL's.
"""

from __future__ import annotations

from align.losses.surrogate import sequence_surrogate
from align.objectives.objective import Objective
from align.ranges import ClipHigh, ClipLow
from align.transforms.advantage import leave_one_out_advantage


def rloo(*, clip_low: ClipLow = 0.2, clip_high: ClipHigh = 0.2) -> Objective:
    """The other responses of the group as the baseline, and one ratio for the whole response (as TRL has it).

    Paper: RLOO, arXiv 2402.14740.
    Limit: its advantage is G / (G - 1) times Dr.GRPO's.
    """
    loss = sequence_surrogate(ratio="product", clip_low=clip_low, clip_high=clip_high)
    return Objective("rloo", chain=(leave_one_out_advantage(),), losses=(loss,))
