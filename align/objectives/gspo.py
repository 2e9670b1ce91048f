"""GSPO: Group Sequence Policy Optimization, arXiv 2507.18071.

    advantage = (reward - mean(reward)) / (std(reward) + eps)                       over the responses of a group
    ratio = exp(mean over tokens of (logprob - old_logprob))                        of a response
    loss = -min(ratio * advantage, clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)

averaged over responses. GSPO-token (eq. 14, `form: token`) has the same value and each token's own gradient:

    ratio = stop_gradient(ratio) * exp(logprob - stop_gradient(logprob))            of each token
"""

from __future__ import annotations

from align.losses.loss import Denominator
from align.losses.surrogate import sequence_surrogate
from align.objectives.objective import Objective
from align.ranges import ClipHigh, ClipLow, Eps, RatioForm, Std
from align.transforms.advantage import group_advantage


def gspo(
    *,
    std: Std = "population",
    eps: Eps = 0.0,
    form: RatioForm = "sequence",
    clip_low: ClipLow = 3e-4,
    clip_high: ClipHigh = 4e-4,
    denominator: Denominator = "full",
) -> Objective:
    """GRPO with one length-normalised ratio a response.

    `form: token` has the same value, and each token's gradient carries its own advantage: take it where
    transforms choose tokens or add credit to them.

    Paper: GSPO, arXiv 2507.18071.
    Limit: responses of one token are GRPO with seq-mean-token-mean.
    """
    loss = sequence_surrogate(form=form, clip_low=clip_low, clip_high=clip_high, denominator=denominator)
    return Objective("gspo", chain=(group_advantage(std=std, eps=eps),), losses=(loss,))
