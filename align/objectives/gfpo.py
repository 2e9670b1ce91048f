"""GFPO: Sample More to Think Less: Group Filtered Policy Optimization for Concise Reasoning, arXiv 2508.09726.

    score = -length                                                                 metric: shortest
    score = reward / length                                                         metric: token_efficiency
    score = any function of the batch                                               metric: my_module:my_score
    kept = the k responses of each group with the highest score
    advantage = (reward - mean(reward[kept])) / (std(reward[kept]) + eps)           0 where not kept         (eq. 2)
    ratio = exp(logprob - old_logprob)                                              of each token
    loss = -min(ratio * advantage, clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)

divided by the number of tokens of all responses, kept or not. With k by difficulty (algorithm 2):

    k = very_hard if mean(reward) < q25 else hard if mean(reward) < q50 else medium if mean(reward) < q75 else easy

where mean(reward) is the prompt's, over its whole group, and q are the quartiles of all prompts so far.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from align import ops
from align.batch import Batch
from align.losses.loss import Aggregation, Denominator
from align.objectives.grpo import grpo
from align.objectives.objective import Objective
from align.ranges import ClipHigh, ClipLow, Count, DualClip, Eps, Section, Several, Std
from align.transforms.transform import Stage, Transform

Score = Callable[[Batch], Tensor]  # [B] of each response, the highest are kept

Metric = Literal["shortest", "token_efficiency"] | Score

KeepCount = Several  # one row has no variance: nothing could be learned from it


class AdaptiveK(Section):
    """Number of responses to keep for each quartile of difficulty, hardest first; the paper's values at G = 16.

    `warmup_prompts`: until so many prompts were seen, every prompt counts as very hard. The paper says "a few
    steps" and no number; the default, one step of its 64 prompts, is reconstructed.
    """

    very_hard: KeepCount = 8
    hard: KeepCount = 8
    medium: KeepCount = 6
    easy: KeepCount = 4
    warmup_prompts: Count = 64

    def levels(self) -> tuple[int, int, int, int]:
        """The four numbers, hardest first."""
        return self.very_hard, self.hard, self.medium, self.easy


class DifficultyTracker:
    """Mean rewards of all prompts seen so far, in ascending order, with exact quartiles.

    The paper keeps a t-digest; it interpolates between the few values that a mean of 0/1 rewards can take and
    so flips the strict comparisons (0.2456 where the quartile is 0.25). Eight bytes a prompt is cheap.
    """

    def __init__(self, k: AdaptiveK):
        self.k = k
        self.seen: list[float] = []

    def update(self, mean_reward_Q: Tensor) -> Tensor:
        """[Q] int64 k of each prompt, in order: its own mean enters before the quartiles are read; strict <."""
        out = []
        for mean in mean_reward_Q.tolist():
            insort(self.seen, mean)
            out.append(self.k.levels()[self._quartile(mean)])
        return torch.tensor(out, dtype=torch.int64)

    def _quartile(self, mean: float) -> int:
        if len(self.seen) < self.k.warmup_prompts:
            return 0
        return sum(mean >= self._quantile(q) for q in (0.25, 0.5, 0.75))

    def _quantile(self, q: float) -> float:
        """The quantile by linear interpolation, to the bit that of `numpy.percentile`, which would sort all again."""
        at = (len(self.seen) - 1) * q
        below, part = self.seen[int(at)], at - int(at)
        above = self.seen[min(int(at) + 1, len(self.seen) - 1)]
        return below + (above - below) * part if part < 0.5 else above - (above - below) * (1 - part)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = sorted(state["seen"])  # earlier versions saved them as they came


def by_length(batch: Batch) -> Tensor:
    """Score of `shortest`: minus the number of tokens."""
    return -batch.length.double()


def by_efficiency(batch: Batch) -> Tensor:
    """Score of `token_efficiency`: reward a token."""
    return batch.need("reward", "keep_top").double() / batch.length.double().clamp(min=1)


SCORES: dict[str, Score] = {"shortest": by_length, "token_efficiency": by_efficiency}


def _scores_of(metric: Metric) -> Score:
    """The function behind a metric, whose scores are checked. Raises `ValueError` for an unknown name."""
    if isinstance(metric, str):
        if metric not in SCORES:
            raise ValueError(f"no metric is called {metric!r}; write {', '.join(SCORES)} or a function of the batch")
        return SCORES[metric]

    def score(batch: Batch) -> Tensor:
        found, rows = metric(batch), len(batch.group)
        if not isinstance(found, Tensor) or found.shape != (rows,):
            what = f"shape {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        elif not found.isfinite().all():
            what = f"{found[~found.isfinite()][0]}"
        else:
            return found.double()
        name = getattr(metric, "__name__", repr(metric))
        raise ValueError(f"the metric {name} gave {what}, not one finite number for each of {rows} responses")

    return score


def keep_top(*, k: KeepCount | AdaptiveK, metric: Metric = "shortest") -> Transform:
    """Keep the k best responses of each group by length, by reward a token, or by a metric of your own.

    GFPO (arXiv 2508.09726, sec. 3).

    Lengths count tokens. Ties go to the row that comes first. `k` is one number (2 to group_size), or one for each
    difficulty (sec. 3.2). A row that an earlier transform dropped is never kept; where fewer than k are left, all
    are. Token efficiency needs rewards of both signs: with 0/1 rewards all wrong responses tie at 0, and among
    negative rewards it prefers the longest.

    A metric of your own is a function `def my_score(batch: Batch) -> Tensor` that gives [B] scores, of which the
    highest are kept; a recipe names it `my_module:my_score`. It reads what is there once responses are scored: tokens,
    lengths, rewards, `correct`, `truncated` and the sampler's log-probabilities. Raises `ValueError` for scores that
    are not finite.
    """
    score = _scores_of(metric)
    adaptive = k if isinstance(k, AdaptiveK) else None
    state = DifficultyTracker(adaptive) if adaptive else None
    largest = max(adaptive.levels()) if adaptive else k

    def check(group_size: int) -> None:
        if largest > group_size:
            raise ValueError(f"k = {largest} of a group of {group_size}: k must be at most the group size")

    def apply(batch: Batch) -> Batch:
        index, groups = ops.group_index(batch.group)
        if state:
            k_Q = state.update(ops.group_mean(batch.need("reward", "keep_top").double(), index, groups))
        else:
            k_Q = torch.full((groups,), k)
        rows = batch.kept.nonzero()[:, 0]
        place = ops.rank_within_group(score(batch)[rows], batch.group[rows])
        kept = torch.zeros_like(batch.kept)
        kept[rows[place < k_Q[index[rows]]]] = True
        return replace(batch, kept=kept)

    needs = ("reward",) if adaptive or metric != "shortest" else ()
    scope = "batch" if state or callable(metric) else "group"
    return Transform("keep_top", apply, stage=Stage.FILTER, needs=needs, state=state, scope=scope, check=check)


def gfpo(
    *,
    k: KeepCount | AdaptiveK,
    metric: Metric = "shortest",
    std: Std = "population",
    eps: Eps = 0.0,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = math.inf,
    aggregation: Aggregation = "token-mean",
    denominator: Denominator = "full",
) -> Objective:
    """Sample more, learn only from the k best of a group by length or reward a token: GRPO on what was kept.

    The paper's denominator counts all responses (`full`); TRL's removed trainer counted the kept ones (`selected`),
    a larger step. The paper adds a KL term and an entropy term with coef 0.001 over all rows; here one adds them by
    name. Its eq. 2 prints the KL to the policy before the update: `add: [{kl_policy_ref: {coef: 0.001, rows: all, to:
    old_policy}}, {entropy_bonus: {coef: 0.001, rows: all}}]`; with one update a step that KL has no gradient. In verl,
    which the paper trained with, the KL is to the reference, the default of `to`. The paper's clipped surrogate is
    "slightly modified" against large ratios of negative advantages; how, it does not say, and `dual_clip: 3` is the
    nearest that is documented.

    `metric` may be a function of your own, `def my_score(batch: Batch) -> Tensor` with one score a response, of which
    the highest are kept: `metric: my_module:my_score`.

    Paper: GFPO, arXiv 2508.09726.
    Limit: k = group_size is GRPO, bit for bit.
    """
    base = grpo(
        std=std,
        eps=eps,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        aggregation=aggregation,
        denominator=denominator,
    )
    return replace(base, name="gfpo", chain=(keep_top(k=k, metric=metric), *base.chain))
