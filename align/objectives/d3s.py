"""D3S: Learning More with Less: A Dynamic Dual-Level Down-Sampling Framework for Efficient Policy Optimization,
arXiv 2509.22115.

    advantage = (reward - mean(reward)) / (std(reward) + eps)                       over all responses of a group
    kept = the subset of responses, `rows` for each group, with the largest Var(advantage): of the batch (the default),
           of each group, or of each group and then `group_then_batch` for each group of the batch
    selected = the `share` of their tokens with the largest |advantage| * entropy
    loss = GRPO's, over the selected tokens

Advantages are not normalised again after a choice. The numbers may follow the run's progress from 0 to 1:

    rows, share = (1 - progress) * start + progress * end

The abstract, the reviews and notes on the paper by others were read, not its text. The notes have two stages, N_s rows
of each group and then N of the batch; how N and N_s relate is not known.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from align import ops
from align.batch import Batch
from align.losses.loss import Aggregation, Denominator
from align.losses.surrogate import clipped_surrogate
from align.objectives.objective import Objective
from align.ranges import ClipHigh, ClipLow, Count, DualClip, Eps, Section, Std, TokenFraction
from align.transforms.advantage import group_advantage
from align.transforms.transform import Stage, Transform

TokenScope = Literal["batch", "response"]


class CountSchedule(Section):
    """From `start` at the first step to `end` at the last, linear in between."""

    start: Count
    end: Count


class FractionSchedule(Section):
    """From `start` at the first step to `end` at the last, linear in between."""

    start: TokenFraction
    end: TokenFraction


class GroupThenBatch(Section):
    """First `rows` of each group, then of all these `group_then_batch` times the number of groups."""

    group_then_batch: Count | CountSchedule


RowScope = Literal["batch", "group"] | GroupThenBatch


def scheduled(value: float | CountSchedule | FractionSchedule, progress: float) -> float:
    """The value at this progress in [0, 1]: (1 - p) start + p end."""
    if isinstance(value, (CountSchedule, FractionSchedule)):
        return (1 - progress) * value.start + progress * value.end
    return value


def _only_row(active_BT: Tensor, i: int) -> Tensor:
    """[B,T] bool: the active tokens of row i."""
    out = torch.zeros_like(active_BT)
    out[i] = active_BT[i]
    return out


def _ends(number: Count | CountSchedule) -> tuple[int, int]:
    """The number at the first step and at the last."""
    return (number.start, number.end) if isinstance(number, CountSchedule) else (number, number)


def row_means(advantage_BT: Tensor, active_BT: Tensor) -> Tensor:
    """[B] float64 mean over each row's active tokens, 0 where there is none; exact where they all have one value."""
    first = advantage_BT[:, :1].double()
    gap = torch.where(active_BT, advantage_BT.double() - first, 0.0)
    tokens = active_BT.sum(1)
    return torch.where(tokens > 0, first[:, 0] + gap.sum(1) / tokens.clamp(min=1), 0.0)


def max_variance_rows(*, rows: Count | CountSchedule, scope: RowScope = "batch") -> Transform:
    """Keep the rows whose advantages have the largest variance, `rows` a group; advantages are not normalised again.

    `scope: group` chooses within each group; `batch`, the default, chooses rows x groups from all kept rows at once,
    which leaves groups without signal out first; `{group_then_batch: N}` chooses `rows` of each group and then
    N x groups of all these, which is the same as this transform twice. Exact: the best subset is the i largest and the
    N - i smallest for some i. Ties: the i nearest to N / 2, then the smaller; equal advantages by row order. The
    advantage of a row is the mean over its active tokens. Raises `ValueError` where the second stage would keep more
    rows than the first left.
    """
    stages = [(rows, scope)]
    if isinstance(scope, GroupThenBatch):
        stages = [(rows, "group"), (scope.group_then_batch, "batch")]
        for end, first, then in zip(("start", "end"), *(_ends(number) for number, _ in stages), strict=True):
            if then > first:
                raise ValueError(
                    f"group_then_batch = {then} at the {end}, of {first} rows a group: it must not be more"
                )
    largest = max(_ends(rows))

    def check(group_size: int) -> None:
        if largest > group_size:
            raise ValueError(f"rows = {largest} of a group of {group_size}: rows must be at most the group size")

    def apply(batch: Batch) -> Batch:
        advantage = row_means(batch.need("advantage", "max_variance_rows"), batch.active)
        index, groups = ops.group_index(batch.group)
        kept = batch.kept
        for number, of in stages:
            each = scheduled(number, batch.progress)
            parts = [kept] if of == "batch" else [kept & (index == q) for q in range(groups)]
            count = math.floor(each * (groups if of == "batch" else 1) + 0.5)
            kept = torch.zeros_like(kept)
            for part in parts:
                members = part.nonzero()[:, 0]
                kept[members[ops.max_variance_subset(advantage[members], count)]] = True
        return replace(batch, kept=kept)

    reach = "group" if scope == "group" else "batch"
    return Transform("max_variance_rows", apply, stage=Stage.ROWS, needs=("advantage",), scope=reach, check=check)


def top_tokens(*, share: TokenFraction | FractionSchedule, scope: TokenScope = "batch") -> Transform:
    """Select the tokens of highest |A| x H, H the entropy of the policy's distribution there, in nats.

    `batch` takes `share` of all active tokens, `response` of each response's. Exactly n = max(1, ceil(share *
    tokens)); ties go to the lower row and position. Reads the entropies of the kept rows: one pass without
    gradient, which also gives the trainer's old log-probabilities.
    """

    def apply(batch: Batch) -> Batch:
        advantage, entropy = batch.need("advantage", "top_tokens"), batch.need("entropy", "top_tokens")
        score = torch.where(batch.active, advantage.abs() * entropy, 0.0)
        fraction = scheduled(share, batch.progress)
        parts = [batch.active] if scope == "batch" else [_only_row(batch.active, i) for i in range(len(score))]
        selected = torch.zeros_like(batch.selected).flatten()
        for part in parts:
            positions = part.flatten().nonzero()[:, 0]
            number = max(1, math.ceil(fraction * len(positions) - 1e-9))
            order = (-score.flatten()[positions]).argsort(stable=True)
            selected[positions[order[:number]]] = True
        return replace(batch, selected=selected.view_as(batch.selected))

    reach = "group" if scope == "response" else "batch"
    return Transform("top_tokens", apply, stage=Stage.TOKENS, needs=("advantage", "entropy"), scope=reach)


def d3s(
    *,
    rows: Count | CountSchedule,
    share: TokenFraction | FractionSchedule,
    row_scope: RowScope = "batch",
    token_scope: TokenScope = "batch",
    std: Std = "population",
    eps: Eps = 0.0,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = math.inf,
    aggregation: Aggregation = "token-mean",
    denominator: Denominator = "selected",
) -> Objective:
    """Learn from the rows of largest advantage variance, and of them from the tokens of largest |A| * entropy.

    The paper's numbers were not at hand, so `rows` (of each group) and `share` (of tokens) have no default; a
    reconstructed start is a quarter of the group growing to all of it, and 0.2 growing to 1. On GSPO: `{name:
    gspo, form: token, denominator: selected, add: [{max_variance_rows: {...}}, {top_tokens: {...}}]}`. Costs one
    pass without gradient over the rows that were kept, for their entropies.

    `row_scope`: `batch` is the default, one stage over the batch. Notes on the paper describe two, `rows` (N_s) of each
    group and then N of the batch: `row_scope: {group_then_batch: 2}` keeps 2 x groups there. How the paper chooses N
    against N_s is not known from what could be read; with N = N_s x groups the second stage keeps all.

    Paper: D3S, arXiv 2509.22115.
    Limit: rows = group_size and share = 1 is GRPO.
    """
    chain = (
        group_advantage(std=std, eps=eps),
        max_variance_rows(rows=rows, scope=row_scope),
        top_tokens(share=share, scope=token_scope),
    )
    loss = clipped_surrogate(
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        aggregation=aggregation,
        denominator=denominator,
    )
    return Objective("d3s", chain=chain, losses=(loss,))
