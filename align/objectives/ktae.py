"""KTAE: A Model-Free Algorithm to Key-Tokens Advantage Estimation in Mathematical Reasoning, arXiv 2505.16826.

Of a group, C responses are correct and W wrong, n = C + W; a token stands in a of the correct and b of the wrong ones.

    F = exp(-2 p), 0 where p = 1; p of Fisher's exact test of (a, b) among (C, W)
    IG = H(C, W) - (a + b) / n * H(a, b) - (n - a - b) / n * H(C - a, W - b)        bits
    D = asin sqrt(a / C) - asin sqrt(b / W) + gamma * (tf_T / (tf_F + 1e-5) - tf_F / (tf_T + 1e-5))
    raw = (alpha * F + beta * IG) * D
    score = top * 2 * (sigmoid(raw / (alpha + beta)) - 1/2)                         combine: code
    score = top * (sigmoid(raw) - 1/2)                                              combine: paper

    advantage = (reward - mean(reward)) / (std(reward) + eps) + weight * score      of each token
    loss = GRPO's

H(x, y) is the entropy of a split x : y. tf_T is the token's BM25 term frequency in all correct responses of the group
joined, tf_F in all wrong ones. The official code decides; where the paper differs from it, a key chooses. In the code
a response is correct where its score is above 0; here what the recipe's `correct` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import comb
from typing import Literal

import torch
from torch import Tensor

from align import ops
from align.batch import Batch
from align.losses.loss import Aggregation
from align.losses.surrogate import clipped_surrogate
from align.objectives.objective import Objective
from align.ranges import ClipHigh, ClipLow, Coef, Count, DualClip, Eps, PositiveCoef, Std
from align.transforms.advantage import group_advantage
from align.transforms.transform import Stage, Transform

BM25_K1, BM25_B = 2.0, 0.5  # the official code's

Fisher = Literal["two_sided", "table"]

Combine = Literal["code", "paper"]

Special = Literal["zero", "count"]


@dataclass(frozen=True)
class Counts:
    """One entry for each distinct (group, token) of a batch."""

    entry_BT: Tensor  # [B,T] int64, the entry of each position; -1 outside the responses
    group_E: Tensor  # [E] int64
    with_correct: Tensor  # [E] float64, correct responses that have the token
    with_wrong: Tensor  # [E]
    in_correct: Tensor  # [E] float64, times that the token stands in correct responses
    in_wrong: Tensor  # [E]
    correct_Q: Tensor  # [Q] int64, correct responses of each group, empty ones included
    wrong_Q: Tensor  # [Q]
    tokens_correct_Q: Tensor  # [Q] float64, all tokens of the correct responses
    tokens_wrong_Q: Tensor  # [Q]


def count(response_ids_BT: Tensor, mask_BT: Tensor, index_B: Tensor, correct_B: Tensor, groups: int) -> Counts:
    """Contingency and term counts of all groups at once; `index` numbers the groups 0..Q-1."""
    row, column = mask_BT.nonzero(as_tuple=True)
    ids = response_ids_BT[row, column]
    span = int(ids.max()) + 1 if len(ids) else 1
    pairs, entry = torch.unique(index_B[row] * span + ids, return_inverse=True)  # (group, token), each once
    E, B = len(pairs), len(index_B)
    present = torch.unique(entry * B + row)  # (entry, row), each once

    def total(at: Tensor, size: int, of: Tensor) -> Tensor:
        return torch.bincount(at[of], minlength=size).double()

    of_entry, of_row = present // B, present % B
    entry_BT = torch.full(mask_BT.shape, -1, dtype=torch.int64)
    entry_BT[row, column] = entry
    return Counts(
        entry_BT=entry_BT,
        group_E=pairs // span,
        with_correct=total(of_entry, E, correct_B[of_row]),
        with_wrong=total(of_entry, E, ~correct_B[of_row]),
        in_correct=total(entry, E, correct_B[row]),
        in_wrong=total(entry, E, ~correct_B[row]),
        correct_Q=torch.bincount(index_B[correct_B], minlength=groups),
        wrong_Q=torch.bincount(index_B[~correct_B], minlength=groups),
        tokens_correct_Q=total(index_B[row], groups, correct_B[row]),
        tokens_wrong_Q=total(index_B[row], groups, ~correct_B[row]),
    )


@lru_cache(maxsize=1024)
def fisher_two_sided(C: int, W: int) -> Tensor:
    """[C+1,W+1] F of Fisher's exact two-sided test: the official code's choice."""
    return _fisher(C, W, lambda weights, here: sum(w for w in weights if w <= here))


@lru_cache(maxsize=1024)
def fisher_table(C: int, W: int) -> Tensor:
    """[C+1,W+1] F of the probability of the observed table alone: as the paper prints it."""
    return _fisher(C, W, lambda weights, here: here)


FISHER: dict[Fisher, Callable[[int, int], Tensor]] = {"two_sided": fisher_two_sided, "table": fisher_table}


def _fisher(C: int, W: int, tail: Callable[[Sequence[int], int], int]) -> Tensor:
    """[C+1,W+1] F at each (a, b); `tail` gives p's share of the hypergeometric weights, exact in integers."""
    out = torch.zeros(C + 1, W + 1, dtype=torch.float64)
    for m in range(C + W + 1):
        low, high = max(0, m - W), min(m, C)
        weights = [comb(C, x) * comb(W, m - x) for x in range(low, high + 1)]
        for x in range(low, high + 1):
            part, whole = tail(weights, weights[x - low]), comb(C + W, m)
            out[x, m - x] = _strength(part / whole, part == whole)
    return out


def _strength(p: float, certain: bool) -> float:
    """F = exp(-2p), and 0 at p = 1. `certain` is whether p is 1, decided in integers, for rounding hides it."""
    return 0.0 if certain else float(torch.tensor(-2.0 * p, dtype=torch.float64).exp())


@lru_cache(maxsize=1024)
def information_gain(C: int, W: int) -> Tensor:
    """[C+1,W+1] bits at each (a, b): the information gain of a token's presence about correctness."""
    a = torch.arange(C + 1, dtype=torch.float64)[:, None]
    b = torch.arange(W + 1, dtype=torch.float64)[None]
    n = max(C + W, 1)
    whole = _entropy(*torch.tensor([C, W], dtype=torch.float64))
    return whole - (a + b) / n * _entropy(a, b) - (n - a - b) / n * _entropy(C - a, W - b)


def _entropy(x: Tensor, y: Tensor) -> Tensor:
    """Bits of the split x : y; 0 where both are 0."""
    p = x / (x + y).clamp(min=1)
    q = y / (x + y).clamp(min=1)
    return -(torch.special.xlogy(p, p) + torch.special.xlogy(q, q)) / torch.log(torch.tensor(2.0, dtype=torch.float64))


def _look_up(table: Callable[[int, int], Tensor], C: Tensor, W: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """[E] table(C, W)[a, b] of each entry; one small exact table for each (C, W), cached."""
    out = torch.zeros(len(a), dtype=torch.float64)
    for c, w in set(zip(C.tolist(), W.tolist(), strict=True)):
        here = (c == C) & (w == W)
        out[here] = table(c, w)[a[here], b[here]]
    return out


def _term_frequency(times: Tensor, length: Tensor, average: Tensor) -> Tensor:
    """BM25 saturation of the relative frequency; 0 for a class without tokens."""
    frequency = times / length.clamp(min=1)
    saturation = BM25_K1 * (1 - BM25_B + BM25_B * length / average.clamp(min=1))
    return (BM25_K1 + 1) * frequency / (frequency + saturation)


def token_scores(
    counts: Counts, fisher: Fisher, combine: Combine, alpha: float, beta: float, gamma: float, top: float
) -> Tensor:
    """[E] float64 in [-top, top]: above 0 where a token goes with correct answers; 0 in groups of one kind."""
    C, W = counts.correct_Q[counts.group_E], counts.wrong_Q[counts.group_E]
    a, b = counts.with_correct.long(), counts.with_wrong.long()
    strength = alpha * _look_up(FISHER[fisher], C, W, a, b) + beta * _look_up(information_gain, C, W, a, b)
    h = (counts.with_correct / C.clamp(min=1)).sqrt().asin() - (counts.with_wrong / W.clamp(min=1)).sqrt().asin()
    long_T, long_F = counts.tokens_correct_Q[counts.group_E], counts.tokens_wrong_Q[counts.group_E]
    tf_T = _term_frequency(counts.in_correct, long_T, (long_T + long_F) / 2)
    tf_F = _term_frequency(counts.in_wrong, long_F, (long_T + long_F) / 2)
    direction = h + gamma * (tf_T / (tf_F + 1e-5) - tf_F / (tf_T + 1e-5))
    raw = strength * direction
    # 2 (sigmoid(x) - 1/2) = tanh(x / 2), which cannot overflow
    score = top * (raw / (alpha + beta) / 2).tanh() if combine == "code" else top * (raw / 2).tanh() / 2
    return torch.where((C > 0) & (W > 0), score, 0.0)


def key_tokens(
    *,
    weight: Coef = 1.0,
    fisher: Fisher = "two_sided",
    combine: Combine = "code",
    alpha: Coef = 1.0,
    beta: Coef = 1.0,
    gamma: Coef = 1.0,
    top: PositiveCoef = 1.0,
    min_count: Count = 1,
    special: Special = "zero",
) -> Transform:
    """Add weight * score(token) to each token's advantage: KTAE (arXiv 2505.16826), the module has the equations.

    `alpha` weighs Fisher's exact test, `beta` the information gain, `gamma` the term frequencies in the direction,
    whose other part is Cohen's h without its factor 2. `fisher` and `combine`: the official code's choice first, then
    the paper's. The code's scripts pass beta 2, but the code ignores it and uses 1. Counted over all responses of the
    group, dropped ones too; given to kept rows only, also where the kept rewards are constant. `min_count`: tokens in
    fewer responses get 0; they dominate otherwise. `special`: `zero` gives the tokenizer's special tokens no score
    (the code does so for one of them). Raises `ValueError` where alpha and beta are both 0.
    """
    if alpha + beta == 0:
        raise ValueError("alpha and beta are both 0: there is nothing to weigh; leave key_tokens out instead")

    def apply(batch: Batch) -> Batch:
        advantage = batch.need("advantage", "key_tokens")
        index, groups = ops.group_index(batch.group)
        counts = count(batch.response_ids, batch.mask, index, batch.need("correct", "key_tokens"), groups)
        score = token_scores(counts, fisher, combine, alpha, beta, gamma, top)
        score = torch.where(counts.with_correct + counts.with_wrong >= min_count, score, 0.0)
        takes = batch.mask & batch.kept[:, None]
        if special == "zero":
            takes &= ~batch.special
        found = torch.cat([score, score.new_zeros(1)])[counts.entry_BT]  # entry -1 is the last
        return replace(batch, advantage=advantage + weight * torch.where(takes, found, 0.0).to(advantage.dtype))

    return Transform("key_tokens", apply, stage=Stage.TOKEN_CREDIT, needs=("advantage", "correct"), scope="group")


def ktae(
    *,
    weight: Coef = 1.0,
    fisher: Fisher = "two_sided",
    combine: Combine = "code",
    alpha: Coef = 1.0,
    beta: Coef = 1.0,
    gamma: Coef = 1.0,
    top: PositiveCoef = 1.0,
    min_count: Count = 1,
    special: Special = "zero",
    std: Std = "sample",
    eps: Eps = 1e-6,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = 3.0,
    aggregation: Aggregation = "token-mean",
) -> Objective:
    """GRPO plus a credit for each token by how it goes with correct answers in its group.

    The defaults are those of the official code's GRPO scripts: sample std, eps 1e-6, dual clip 3. The one for 1.5B also
    adds `kl_policy_ref` with coef 0.001. The DAPO scripts are this with `dual_clip: 10` and `clip_high: 0.28` (1.5B) or
    0.24 (7B), dynamic sampling, and the reward `rewards.length:soft_overlong`; they mask nothing. `{name: dapo, add:
    [{key_tokens: {}}]}` differs from them: population std, eps 0, clip 0.28, no dual clip, cut responses masked.

    A response is correct in the code where its score is above 0, so a right answer whose overlong penalty takes all of
    its reward counts as wrong; here `correct` of the recipe decides. See `key_tokens`.

    Paper: KTAE, arXiv 2505.16826.
    Limit: weight 0 is GRPO with the same std, eps and dual clip.
    """
    scores = key_tokens(
        weight=weight,
        fisher=fisher,
        combine=combine,
        alpha=alpha,
        beta=beta,
        gamma=gamma,
        top=top,
        min_count=min_count,
        special=special,
    )
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip, aggregation=aggregation)
    return Objective("ktae", chain=(group_advantage(std=std, eps=eps), scores), losses=(loss,))
