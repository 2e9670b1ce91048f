"""Transforms that give every token of a response the response's advantage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from pydantic import FiniteFloat
from torch import Tensor

from align import ops
from align.batch import Batch
from align.ranges import Eps, Std
from align.transforms.transform import Stage, Transform


def _row_advantage(name: str, needs: str, of: Callable[[Tensor, Tensor], Tensor], **rest) -> Transform:
    """A transform that gives each kept row the advantage that `of(quantity, group)` computes over the kept rows."""

    def apply(batch: Batch) -> Batch:
        rows = batch.kept.nonzero()[:, 0]
        value = batch.need(needs, name)
        advantage = torch.zeros(len(value), dtype=batch.weight.dtype)
        advantage[rows] = of(value[rows], batch.group[rows]).to(advantage.dtype)
        return replace(batch, advantage=torch.where(batch.mask, advantage[:, None], 0.0))

    return Transform(name, apply, needs=(needs,), gives=("advantage",), stage=Stage.ADVANTAGE, scope="group", **rest)


def group_advantage(*, std: Std = "population", eps: Eps = 0.0) -> Transform:
    """Set advantage = (reward - mean) / (std + eps) over the kept rows of each group, the same for all tokens of a row.

    DeepSeekMath (arXiv 2402.03300) and GFPO eq. 2 with `population`, eps 0; TRL and verl use `sample` with
    eps 1e-4 and 1e-6; Dr.GRPO (arXiv 2503.20783) does not divide: `none`. A constant group, and a group of
    one, gets exactly 0; rewards that differ by at most 4 roundings of their type (5e-7 of their size in float32) are
    constant.
    """
    return _row_advantage(
        "group_advantage", "reward", lambda r, group: ops.group_norm(r, group, std, eps), compares=True
    )


def leave_one_out_advantage() -> Transform:
    """Set advantage = reward - mean of the other kept rows' rewards of the group: RLOO (arXiv 2402.14740).

    It is computed as n / (n - 1) * (reward - mean) of the n kept rows, and is 0 in a group of one.
    """

    def advantage(reward: Tensor, group: Tensor) -> Tensor:
        index, groups = ops.group_index(group)
        n = torch.bincount(index, minlength=groups)[index].to(reward.dtype)
        return ops.group_norm(reward, group, "none", 0.0) * n / (n - 1).clamp(min=1)

    return _row_advantage("leave_one_out_advantage", "reward", advantage, compares=True)


def reward_advantage() -> Transform:
    """Set advantage = reward, without a baseline: REINFORCE."""
    return _row_advantage("reward_advantage", "reward", lambda reward, group: reward)


def outcome_advantage(*, correct: FiniteFloat = 1.0, wrong: FiniteFloat = -1.0) -> Transform:
    """Set one constant for correct and one for wrong responses, without mean and std (arXiv 2506.01347).

    Correctness is its own quantity, not reward > 0: a correct but overlong answer may have reward 0.
    """
    return _row_advantage(
        "outcome_advantage", "correct", lambda right, group: torch.where(right, float(correct), float(wrong))
    )


def sign_filter(*, sign: Literal["negative", "positive"]) -> Transform:
    """Keep tokens whose advantage has one sign: GRPO-N keeps the negative (arXiv 2510.04028; reconstructed).

    The others are taken out, with an advantage of 0: a loss whose denominator is `selected` does not count them, one
    whose denominator is `full` does.
    """

    def apply(batch: Batch) -> Batch:
        advantage = batch.need("advantage", "sign_filter")
        keep = advantage < 0 if sign == "negative" else advantage > 0
        advantage = advantage.clamp(max=0) if sign == "negative" else advantage.clamp(min=0)
        return replace(batch, advantage=advantage, selected=batch.selected & keep)

    return Transform("sign_filter", apply, stage=Stage.SIGN, needs=("advantage",), scope="group")
