"""KTAE, Key-Token Advantage Estimation: arXiv 2505.16826."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import comb
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from align import ops
from align.batch import Batch
from align.losses.loss import Aggregation
from align.losses.surrogate import clipped_surrogate
from align.objectives.objective import Objective
from align.transforms.advantage import group_advantage
from align.transforms.transform import Stage, Transform

Fisher = Literal["two_sided", "table"]

Combine = Literal["code", "paper"]


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
    keys, entry = torch.unique(index_B[row] * span + ids, return_inverse=True)
    E, B = len(keys), len(index_B)
    present = torch.unique(entry * B + row)  # (entry, row) pairs, each once

    def total(at: Tensor, size: int, of: Tensor) -> Tensor:
        return torch.bincount(at[of], minlength=size).double()

    of_entry, of_row = present // B, present % B
    entry_BT = torch.full(mask_BT.shape, -1, dtype=torch.int64)
    entry_BT[row, column] = entry
    return Counts(
        entry_BT=entry_BT,
        group_E=keys // span,
        with_correct=total(of_entry, E, correct_B[of_row]),
        with_wrong=total(of_entry, E, ~correct_B[of_row]),
        in_correct=total(entry, E, correct_B[row]),
        in_wrong=total(entry, E, ~correct_B[row]),
        correct_Q=torch.bincount(index_B[correct_B], minlength=groups),
        wrong_Q=torch.bincount(index_B[~correct_B], minlength=groups),
        tokens_correct_Q=total(index_B[row], groups, correct_B[row]),
        tokens_wrong_Q=total(index_B[row], groups, ~correct_B[row]),
    )


def keys(
    counts: Counts, fisher: Fisher, combine: Combine, alpha: float, beta: float, gamma: float, top: float
) -> Tensor:
    """[E] float64 in [-top, top]: above 0 where a token goes with correct answers; 0 in groups of one kind."""
    C, W = counts.correct_Q[counts.group_E], counts.wrong_Q[counts.group_E]
    a, b = counts.with_correct.long(), counts.with_wrong.long()
    strength = alpha * _look_up(_fisher(fisher), C, W, a, b) + beta * _look_up(information_gain, C, W, a, b)
    h = (counts.with_correct / C.clamp(min=1)).sqrt().asin() - (counts.with_wrong / W.clamp(min=1)).sqrt().asin()
    long_T, long_F = counts.tokens_correct_Q[counts.group_E], counts.tokens_wrong_Q[counts.group_E]
    tf_T = _bm25(counts.in_correct, long_T, (long_T + long_F) / 2)
    tf_F = _bm25(counts.in_wrong, long_F, (long_T + long_F) / 2)
    direction = h + gamma * (tf_T / (tf_F + 1e-5) - tf_F / (tf_T + 1e-5))
    raw = strength * direction
    # top * 2 (sigmoid(x) - 1/2) = top * tanh(x / 2), which cannot overflow
    key = top * (raw / (alpha + beta) / 2).tanh() if combine == "code" else top * (raw / 2).tanh() / 2
    return torch.where((C > 0) & (W > 0), key, 0.0)


def _bm25(times: Tensor, length: Tensor, average: Tensor, k1: float = 2.0, b: float = 0.5) -> Tensor:
    """BM25 saturation of the relative frequency; 0 for a class without tokens."""
    frequency = times / length.clamp(min=1)
    return (k1 + 1) * frequency / (frequency + k1 * (1 - b + b * length / average.clamp(min=1)))


def _fisher(kind: Fisher):
    return {"two_sided": fisher_two_sided, "table": fisher_table}[kind]


def _look_up(table, C: Tensor, W: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """[E] table(C, W)[a, b] of each entry; one small exact table for each (C, W), kept."""
    out = torch.zeros(len(a), dtype=torch.float64)
    for c, w in set(zip(C.tolist(), W.tolist(), strict=True)):
        here = (c == C) & (w == W)
        out[here] = table(c, w)[a[here], b[here]]
    return out


def _strength(p: float, certain: bool) -> float:
    """F = exp(-2p), and 0 at p = 1; whether it is 1 is decided in integers, floats miss it."""
    return 0.0 if certain else float(torch.tensor(-2.0 * p, dtype=torch.float64).exp())


@lru_cache(maxsize=1024)
def fisher_two_sided(C: int, W: int) -> Tensor:
    """[C+1,W+1] F of Fisher's exact two-sided test: the official code's choice."""
    return _table(C, W, lambda weights, here: sum(w for w in weights if w <= here))


@lru_cache(maxsize=1024)
def fisher_table(C: int, W: int) -> Tensor:
    """[C+1,W+1] F of the probability of the observed table alone: as the paper prints it."""
    return _table(C, W, lambda weights, here: here)


def _table(C: int, W: int, tail) -> Tensor:
    out = torch.zeros(C + 1, W + 1, dtype=torch.float64)
    for m in range(C + W + 1):
        low, high = max(0, m - W), min(m, C)
        weights = [comb(C, x) * comb(W, m - x) for x in range(low, high + 1)]
        for x in range(low, high + 1):
            part, whole = tail(weights, weights[x - low]), comb(C + W, m)
            out[x, m - x] = _strength(part / whole, part == whole)
    return out


@lru_cache(maxsize=1024)
def information_gain(C: int, W: int) -> Tensor:
    """[C+1,W+1] bits that a token's presence tells about correctness."""
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


def key_tokens(
    *,
    weight: Annotated[float, Ge(0)] = 1.0,
    fisher: Fisher = "two_sided",
    combine: Combine = "code",
    alpha: Annotated[float, Ge(0)] = 1.0,
    beta: Annotated[float, Ge(0)] = 1.0,
    gamma: Annotated[float, Ge(0)] = 1.0,
    top: Annotated[float, Gt(0)] = 1.0,
    min_count: Annotated[int, Ge(1)] = 1,
    special: Literal["zero", "count"] = "zero",
) -> Transform:
    """Add weight * key(token) to each token's advantage (KTAE, arXiv 2505.16826).

    key = tanh of ((alpha F + beta IG) * D): F from Fisher's exact test, IG the information gain in bits, D the
    direction (Cohen's h without its 2, plus gamma times the difference of BM25 ratios). `fisher` and
    `combine`: the official code's choice first, then the paper's. The code's scripts pass beta 2, but the code
    ignores it and uses 1. Counted over all responses of the group, dropped ones too; given to kept rows only,
    also where the kept rewards are constant. `min_count`: tokens in fewer responses get 0; they dominate
    otherwise. `special`: `zero` gives the tokenizer's special tokens no key (the code does so for one of them).
    """
    if alpha + beta == 0:
        raise ValueError("alpha and beta are both 0: there is nothing to weigh; leave key_tokens out instead")

    def apply(batch: Batch) -> Batch:
        advantage = batch.need("advantage", "key_tokens")
        index, groups = ops.group_index(batch.group)
        counts = count(batch.response_ids, batch.mask, index, batch.need("correct", "key_tokens"), groups)
        key = keys(counts, fisher, combine, alpha, beta, gamma, top)
        key = torch.where(counts.with_correct + counts.with_wrong >= min_count, key, 0.0)
        takes = batch.mask & batch.kept[:, None]
        if special == "zero":
            takes &= ~batch.special
        found = torch.cat([key, key.new_zeros(1)])[counts.entry_BT]  # entry -1 is the last
        return replace(batch, advantage=advantage + weight * torch.where(takes, found, 0.0).to(advantage.dtype))

    return Transform("key_tokens", apply, stage=Stage.TOKEN_CREDIT, needs=("advantage", "correct"))


def ktae(
    *,
    weight: Annotated[float, Ge(0)] = 1.0,
    fisher: Fisher = "two_sided",
    combine: Combine = "code",
    alpha: Annotated[float, Ge(0)] = 1.0,
    beta: Annotated[float, Ge(0)] = 1.0,
    gamma: Annotated[float, Ge(0)] = 1.0,
    top: Annotated[float, Gt(0)] = 1.0,
    min_count: Annotated[int, Ge(1)] = 1,
    special: Literal["zero", "count"] = "zero",
    std: ops.Std = "sample",
    eps: Annotated[float, Ge(0)] = 1e-6,
    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2,
    clip_high: Annotated[float, Ge(0)] = 0.2,
    aggregation: Aggregation = "token-mean",
) -> Objective:
    """GRPO plus a credit for each token by how it goes with correct answers in its group.

    The defaults are the official code's. On DAPO: `{name: dapo, add: [{key_tokens: {}}]}`. See `key_tokens`.

    Paper: KTAE, arXiv 2505.16826.
    Limit: key weight 0 is GRPO with the same std and eps.
    """
    keys = key_tokens(
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
    loss = clipped_surrogate(clip_low=clip_low, clip_high=clip_high, aggregation=aggregation)
    return Objective("ktae", chain=(group_advantage(std=std, eps=eps), keys), losses=(loss,))
