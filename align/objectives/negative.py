"""Learning from mistakes: NSR, PSR and W-REINFORCE (arXiv 2506.01347), GRPO-N (arXiv 2510.04028)."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Lt

from align import ops
from align.losses import Denominator, clipped_surrogate
from align.objectives.objective import Objective
from align.transforms import group_advantage, keep_outcome, outcome_advantage, sign_filter

Low = Annotated[float, Ge(0), Lt(1)]
High = Annotated[float, Ge(0)]


def nsr(*, clip_low: Low = 0.2, clip_high: High = 0.2, denominator: Denominator = "selected") -> Objective:
    """Only wrong responses teach, with an advantage of -1: what not to do.

    The official code drops the correct rows and divides by what is left (`selected`).

    Paper: NSR, arXiv 2506.01347.
    Limit: with the full denominator it is w_reinforce with positive_weight 0.
    """
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high, denominator=denominator)
    return Objective("nsr", chain=(keep_outcome(outcome="wrong"), outcome_advantage()), losses=(loss,))


def psr(*, clip_low: Low = 0.2, clip_high: High = 0.2, denominator: Denominator = "selected") -> Objective:
    """Only correct responses teach, with an advantage of +1.

    Paper: PSR, arXiv 2506.01347.
    Limit: PSR and NSR with the full denominator add up to w_reinforce with positive_weight 1.
    """
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high, denominator=denominator)
    return Objective("psr", chain=(keep_outcome(outcome="correct"), outcome_advantage()), losses=(loss,))


def w_reinforce(
    *, positive_weight: Annotated[float, Ge(0)] = 0.1, clip_low: Low = 0.2, clip_high: High = 0.2
) -> Objective:
    """Correct responses count `positive_weight`, the paper's lambda, and wrong ones -1.

    Paper: W-REINFORCE, arXiv 2506.01347.
    Limit: 1 is REINFORCE on rewards of +1 and -1, 0 is NSR with the full denominator.
    """
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high)
    return Objective("w_reinforce", chain=(outcome_advantage(correct=positive_weight, wrong=-1.0),), losses=(loss,))


def grpo_n(
    *,
    std: ops.Std = "population",
    eps: Annotated[float, Ge(0)] = 0.0,
    clip_low: Low = 0.2,
    clip_high: High = 0.2,
    denominator: Denominator = "full",
) -> Objective:
    """GRPO's negative advantages only, min(A, 0); the denominator is our choice, it was not in what was read.

    Paper: GRPO-N, arXiv 2510.04028 (reconstructed).
    Limit: together with its positive half it is GRPO.
    """
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high, denominator=denominator)
    chain = (group_advantage(std=std, eps=eps), sign_filter(sign="negative"))
    return Objective("grpo_n", chain=chain, losses=(loss,))
