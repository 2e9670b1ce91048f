"""Links that decide which rows and tokens take part."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge

from align import ops
from align.batch import Batch
from align.transforms.adaptive import AdaptiveK, DifficultyTracker
from align.transforms.transform import Stage, Transform

Metric = Literal["shortest", "token_efficiency"]
Rank = Annotated[int, Ge(2)]  # one row has no variance: nothing could be learned from it


def keep_top(*, k: Rank | AdaptiveK, metric: Metric = "shortest") -> Transform:
    """Keep the k best responses of each group by length or by reward a token (GFPO, arXiv 2508.09726, sec. 3).

    `metric`: `shortest` scores -|o|, `token_efficiency` scores R / |o|. |o| counts tokens. Ties go to the
    row that comes first. `k` is one number (2 to group_size), or one for each difficulty (sec. 3.2).
    A row that an earlier link dropped is never kept; where fewer than k are left, all are.
    Token efficiency needs rewards of both signs: with 0/1 rewards all wrong responses tie at 0, and among
    negative rewards it prefers the longest.
    """
    adaptive = k if isinstance(k, AdaptiveK) else None
    state = DifficultyTracker(adaptive) if adaptive else None
    largest = max(adaptive.levels()) if adaptive else k

    def check(group_size: int) -> None:
        if largest > group_size:
            raise ValueError(f"k = {largest} of a group of {group_size}: k must be at most the group size")

    def apply(batch: Batch) -> Batch:
        index, groups = ops.group_index(batch.group)
        reward = batch.need("reward", "keep_top") if adaptive or metric == "token_efficiency" else None
        k_Q = state.update(ops.group_mean(reward.double(), index, groups)) if state else torch.full((groups,), k)
        length = batch.length.double().clamp(min=1)
        score = -length if metric == "shortest" else reward.double() / length
        rows = batch.kept.nonzero()[:, 0]
        place = ops.rank_within_group(score[rows], batch.group[rows])
        kept = torch.zeros_like(batch.kept)
        kept[rows[place < k_Q[index[rows]]]] = True
        return replace(batch, kept=kept)

    needs = ("reward",) if adaptive or metric == "token_efficiency" else ()
    return Transform("keep_top", apply, stage=Stage.FILTER, needs=needs, state=state, check=check)


def keep_outcome(*, outcome: Literal["correct", "wrong"]) -> Transform:
    """Keep the responses of one outcome: PSR learns from correct ones, NSR from wrong ones (arXiv 2506.01347)."""

    def apply(batch: Batch) -> Batch:
        correct = batch.need("correct", "keep_outcome")
        return replace(batch, kept=batch.kept & (correct if outcome == "correct" else ~correct))

    return Transform("keep_outcome", apply, stage=Stage.FILTER, needs=("correct",))


def mask_truncated() -> Transform:
    """Take out the tokens of responses that were cut at the limit: their reward says nothing about their end.

    DAPO's overlong filtering (arXiv 2503.14476, sec. 3.4). The rows stay in their group's statistics.
    """

    def apply(batch: Batch) -> Batch:
        truncated = batch.need("truncated", "mask_truncated")
        return replace(batch, selected=batch.selected & ~truncated[:, None])

    return Transform("mask_truncated", apply, stage=Stage.TOKENS, needs=("truncated",))
