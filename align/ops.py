"""Small pieces of maths that several transforms or losses share. Pure functions of tensors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

LOG_RATIO = 20.0  # nats; exp of a larger one could overflow, and infinity times an advantage of 0 is NaN


def group_index(group_B: Tensor) -> tuple[Tensor, int]:
    """([B] int64 in 0..Q-1 in ascending order of the group's number, Q)."""
    names, index = torch.unique(group_B, return_inverse=True)
    return index, len(names)


def group_mean(value_B: Tensor, index_B: Tensor, groups: int) -> Tensor:
    """[Q] mean of each group; 0 for a group without rows."""
    count = torch.zeros(groups, dtype=value_B.dtype).index_add_(0, index_B, torch.ones_like(value_B))
    return torch.zeros(groups, dtype=value_B.dtype).index_add_(0, index_B, value_B) / count.clamp(min=1)


def group_norm(reward_B: Tensor, group_B: Tensor, std: Literal["population", "sample", "none"], eps: float) -> Tensor:
    """[B] (R - mean) / (std + eps) within each group; exactly 0 where a group is constant or has one row.

    A constant group is recognised by max == min: in float32 the deviations of seven copies of 0.7 from
    their mean are not 0, and dividing them by their own size would turn noise into an advantage of 1.
    Sums run in float64.
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
    low = torch.full((groups,), torch.inf, dtype=value.dtype).scatter_reduce(0, index, value, "amin")
    high = torch.full((groups,), -torch.inf, dtype=value.dtype).scatter_reduce(0, index, value, "amax")
    return torch.where((low == high)[index], 0.0, advantage).to(reward_B.dtype)


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
    variances: the i nearest to number / 2, then the smaller.
    """
    order = (-value_B).argsort(stable=True)
    n = len(order)
    if number >= n:
        return order
    x = value_B[order].double()
    p = torch.cat([x.new_zeros(1), x.cumsum(0)])
    q = torch.cat([x.new_zeros(1), (x * x).cumsum(0)])
    top = torch.arange(number + 1)
    bottom = n - (number - top)
    variance = (q[top] + q[n] - q[bottom]) / number - ((p[top] + p[n] - p[bottom]) / number) ** 2
    near = ((variance >= variance.max() - 1e-12).nonzero()[:, 0]).tolist()
    i = min(near, key=lambda i: (abs(2 * i - number), i))
    return torch.cat([order[:i], order[n - (number - i) :]])


def kl_k1_policy_ref(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """log p - log q: unbiased for KL(policy || reference) on the policy's samples, may be negative."""
    return logprob - ref_logprob


def kl_k2_policy_ref(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """(log p - log q)^2 / 2: its gradient on the policy's samples is that of KL(policy || reference)."""
    return (logprob - ref_logprob) ** 2 / 2


def kl_k3_policy_ref(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """q/p - 1 - log(q/p): unbiased for KL(policy || reference), never negative (Schulman 2020; GRPO's estimator)."""
    d = ref_logprob - logprob
    return d.exp() - d - 1
