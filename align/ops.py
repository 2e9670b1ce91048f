"""Small pieces of maths that several transforms or losses share. Pure functions of tensors."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

LOG_RATIO = 20.0  # nats; exp of a larger one could overflow, and infinity times an advantage of 0 is NaN

REF_RATIO = 100.0  # of the k3 estimator: reference over policy; a larger one counts as this in the gradient

ROUNDING = 4  # relative roundings by which equal sums of rewards may differ


def group_index(group_B: Tensor) -> tuple[Tensor, int]:
    """([B] int64 in 0..Q-1 in ascending order of the group's number, Q)."""
    names, index = torch.unique(group_B, return_inverse=True)
    return index, len(names)


def group_mean(value_B: Tensor, index_B: Tensor, groups: int) -> Tensor:
    """[Q] mean of each group; 0 for a group without rows."""
    count = torch.zeros(groups, dtype=value_B.dtype).index_add_(0, index_B, torch.ones_like(value_B))
    return torch.zeros(groups, dtype=value_B.dtype).index_add_(0, index_B, value_B) / count.clamp(min=1)


def same_up_to_rounding(low: Tensor, high: Tensor) -> Tensor:
    """Bool of the shape of `low` <= `high`: the two differ by at most 4 relative roundings of their type.

    A relative rounding is `finfo.eps` times the larger size: 1.2e-7 in float32. So much apart are weighted sums of the
    same rewards that were added in another order; around 0 only equal values are the same.
    """
    rounding = torch.finfo(low.dtype).eps * torch.maximum(low.abs(), high.abs())
    return (low == high) | (high - low <= ROUNDING * rounding)


def group_norm(reward_B: Tensor, group_B: Tensor, std: Literal["population", "sample", "none"], eps: float) -> Tensor:
    """[B] (R - mean) / (std + eps) within each group; exactly 0 where a group is constant or has one row.

    A group is constant where its smallest and its largest reward are the same up to rounding. In float32 the deviations
    of seven copies of 0.7 from their mean are not 0, and two rewards one rounding apart have deviations of just that:
    dividing them by their own size would turn noise into an advantage of 1. Sums run in float64.
    """
    value = reward_B.double()
    index, groups = group_index(group_B)
    mean = group_mean(value, index, groups)
    centred = value - mean[index]
    if std == "none":
        advantage = centred
    else:
        variance = group_mean(centred**2, index, groups)
        if std == "sample":
            n = torch.bincount(index, minlength=groups)
            variance = variance * n / (n - 1).clamp(min=1)
        advantage = centred / (variance.sqrt()[index] + eps)
    low = torch.full((groups,), torch.inf, dtype=reward_B.dtype).scatter_reduce(0, index, reward_B, "amin")
    high = torch.full((groups,), -torch.inf, dtype=reward_B.dtype).scatter_reduce(0, index, reward_B, "amax")
    return torch.where(same_up_to_rounding(low, high)[index], 0.0, advantage).to(reward_B.dtype)


def up_to_last(marked_BT: Tensor) -> Tensor:
    """[B] int64: tokens of each row up to the last one marked, that one included; 0 where none is."""
    return (marked_BT * torch.arange(1, marked_BT.shape[1] + 1)).amax(1)


def rank_within_group(score_B: Tensor, group_B: Tensor) -> Tensor:
    """[B] place of each row in its group by descending score (0 is best); ties by row order.

    `torch.topk` leaves the order of ties open, and at the border a tie decides who is kept.
    """
    index, groups = group_index(group_B)
    order = (-score_B).argsort(stable=True)
    order = order[index[order].argsort(stable=True)]
    size = torch.bincount(index, minlength=groups)
    start = size.cumsum(0) - size
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - start[index[order]]
    return place


def max_variance_subset(value_B: Tensor, number: int) -> Tensor:
    """[number] int64 places of the subset of largest population variance; all places where there are fewer.

    The subset is i from the top and number - i from the bottom of one descending order, so none twice. Equal
    variances: the i nearest to number / 2, then the smaller. Variances are equal where they differ by at most 1e-12 of
    the squared spread (largest - smallest), so that neither scale nor shift of the values changes the subset.
    """
    order = (-value_B).argsort(stable=True)
    n = len(order)
    if number >= n:
        return order
    x = value_B[order].double()
    spread = x[0] - x[-1]
    x = x - (x[0] + x[-1]) / 2  # sums of squares around 0 lose the least to rounding
    p = torch.cat([x.new_zeros(1), x.cumsum(0)])
    q = torch.cat([x.new_zeros(1), (x * x).cumsum(0)])
    top = torch.arange(number + 1)
    bottom = n - (number - top)
    variance = (q[top] + q[n] - q[bottom]) / number - ((p[top] + p[n] - p[bottom]) / number) ** 2
    near = ((variance >= variance.max() - 1e-12 * spread**2).nonzero()[:, 0]).tolist()
    i = min(near, key=lambda i: (abs(2 * i - number), i))
    return torch.cat([order[:i], order[n - (number - i) :]])


def kl_k1_policy_ref(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """log p - log q: unbiased for KL(policy || reference) on the policy's samples, may be negative."""
    return logprob - ref_logprob


def kl_k2_policy_ref(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """(log p - log q)^2 / 2: its gradient on the policy's samples is that of KL(policy || reference)."""
    return (logprob - ref_logprob) ** 2 / 2


def kl_k3_policy_ref(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """q/p - 1 - log(q/p): never negative (Schulman 2020; GRPO's estimator); goes on as its tangent where q/p > 100.

    Up to there it is unbiased for KL(policy || reference) on the policy's samples. With d = log(q/p) and c = 100, the
    value beyond is c - 1 - log(c) + (c - 1) * (d - log(c)). So the gradient to `logprob` is 1 - min(q/p, c) everywhere:
    between 1 and -99, and never 0 where the policy has moved far away. exp(d) alone is inf in float32 from 89 nats on.
    """
    d = ref_logprob - logprob
    most = math.log(REF_RATIO)
    near = d.clamp(max=most)
    return torch.where(d > most, REF_RATIO - 1 - most + (REF_RATIO - 1) * (d - most), near.exp() - near - 1)


def ref_ratio_bounded(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """Bool: where the reference gives a token more than 100 times the policy's probability, beyond the bound of k3."""
    return ref_logprob - logprob > math.log(REF_RATIO)


def directions(width: int) -> Tensor:
    """[width,8] fixed random directions, along which the rows of a table are told apart."""
    return torch.randn(width, 8, generator=torch.Generator().manual_seed(0))
