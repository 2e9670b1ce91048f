"""CISPO: MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention, arXiv 2506.13585.

advantage = (reward - mean(reward)) / (std(reward) + eps)                       over the responses of a group
ratio = exp(logprob - old_logprob)                                              of each token
loss = -stop_gradient(clip(ratio, ratio_low, ratio_high)) * advantage * logprob                        (eq. 4)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from align.batch import Batch
from align.losses.loss import Aggregation, Current, Denominator, Loss
from align.losses.surrogate import surrogate, token_ratio
from align.objectives.objective import Objective
from align.ranges import Eps, RatioHigh, RatioLow, Std
from align.transforms.advantage import group_advantage


def weighted_logprob(
    *,
    ratio_low: RatioLow = 0.0,
    ratio_high: RatioHigh = 5.0,
    aggregation: Aggregation = "token-mean",
    denominator: Denominator = "full",
) -> Loss:
    """Log-probability of each token, weighted by its advantage and its bounded ratio: CISPO (arXiv 2506.13585 eq. 4).

    The bounds are those of the ratio itself, as in TRL; verl's clip 0.2 / 0.2 is 0.8 and 1.2. No token's
    gradient is ever clipped away. Raises `ValueError` for ratio_low > ratio_high.
    """
    if ratio_low > ratio_high:
        raise ValueError(f"ratio_low ({ratio_low}) must not be above ratio_high ({ratio_high})")

    def values(current: Current, batch: Batch) -> Tensor:
        bounded = token_ratio(current, batch).detach().clamp(ratio_low, ratio_high)
        return -bounded * batch.advantage * torch.where(batch.mask, current.logprob, 0.0)

    return surrogate("weighted_logprob", values, token_ratio, (math.inf, math.inf, math.inf), aggregation, denominator)


def cispo(
    *,
    std: Std = "population",
    eps: Eps = 0.0,
    ratio_low: RatioLow = 0.0,
    ratio_high: RatioHigh = 5.0,
) -> Objective:
    """REINFORCE weighted by a bounded ratio without gradient: no token is clipped away.

    Paper: CISPO, arXiv 2506.13585 eq. 4.
    Limit: on-policy its gradient is GRPO's.
    """
    loss = weighted_logprob(ratio_low=ratio_low, ratio_high=ratio_high)
    return Objective("cispo", chain=(group_advantage(std=std, eps=eps),), losses=(loss,))
