"""Losses of preference pairs: a score for each response, and a function of the difference of a pair's two.

A pair is a group of two kept rows, one of them `chosen`. Sums and means run over the active tokens of a response;
the loss is the mean over pairs, never over tokens. Log-ratios are those of the policy to the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from torch.nn.functional import logsigmoid

from align.batch import Batch
from align.losses.loss import Current, Loss, Weighted

Beta = Annotated[float, Gt(0)]
Smoothing = Annotated[float, Ge(0), Lt(0.5)]


class PairError(ValueError):
    """The kept rows of a group that are no pair; `group` is its number."""

    def __init__(self, group: int):
        super().__init__("a pair is exactly one chosen and one rejected response among the kept rows of a group")
        self.group = group


def pair_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """([P] rows of the chosen, [P] of the rejected responses), pair by pair. Raises `PairError`."""
    kept, side = batch.kept.nonzero()[:, 0], batch.need("chosen", "a loss of pairs")
    chosen, rejected = kept[side[kept]], kept[~side[kept]]
    chosen = chosen[batch.group[chosen].argsort(stable=True)]
    rejected = rejected[batch.group[rejected].argsort(stable=True)]
    if not torch.equal(batch.group[chosen], batch.group[rejected]) or len(batch.group[kept].unique()) < len(chosen):
        sides = {g: side[kept[batch.group[kept] == g]].tolist() for g in batch.group[kept].tolist()}
        raise PairError(next(g for g, found in sides.items() if sorted(found) != [False, True]))
    return chosen, rejected


def log_ratio(current: Current, batch: Batch) -> Tensor:
    """[B,T] logprob - ref_logprob in nats, 0 at tokens that take no part."""
    return torch.where(batch.active, current.logprob - batch.need("ref_logprob", "the log-ratio"), 0.0)


def _mean(value_BT: Tensor, batch: Batch) -> Tensor:
    return value_BT.sum(1) / batch.active.sum(1).clamp(min=1)


def _each_pair(batch: Batch) -> Weighted:
    chosen, _ = pair_rows(batch)
    weight = torch.zeros(len(batch.mask), 1, dtype=batch.weight.dtype)
    weight[chosen] = 1.0
    return Weighted(weight, batch.active, float(len(chosen)))


def pair_loss(
    name: str,
    score: Callable[[Current, Batch], Tensor],
    of: Callable[[Tensor], Tensor],
    beta: float,
    measure: Callable[[Current, Batch], dict[str, Tensor]] = lambda current, batch: {},
    **rest,
) -> Loss:
    """`of` (elementwise) the score of the chosen less that of the rejected response ([B] each).

    The log has that difference as `logit`, and beside it DPO's `margin`, beta times the difference of
    the summed log-ratios, with its accuracy, wherever there is a reference: a loss that falls may still prefer
    the wrong response.
    """

    def values(current: Current, batch: Batch) -> Tensor:
        chosen, rejected = pair_rows(batch)
        score_B = score(current, batch)
        out = torch.zeros(len(batch.mask), 1, dtype=score_B.dtype)
        return out.index_put((chosen,), of(score_B[chosen] - score_B[rejected])[:, None])

    def measured(current: Current, batch: Batch, weighted: Weighted) -> dict[str, Tensor]:
        chosen, rejected = pair_rows(batch)
        score_B = score(current, batch)
        logit = score_B[chosen] - score_B[rejected]
        out = {"logit": logit, "logit_accuracy": logit > 0, **measure(current, batch)}
        if batch.ref_logprob is not None:
            reward = beta * log_ratio(current, batch).sum(1)
            margin = reward[chosen] - reward[rejected]
            out |= {"margin": margin, "accuracy": margin > 0}
            out |= {"reward/chosen": reward[chosen], "reward/rejected": reward[rejected]}
        return out

    return Loss(name, unit="pair", weigh=_each_pair, weighs=("chosen",), values=values, measure=measured, **rest)


def smoothed(label_smoothing: float, form: Literal["conservative", "robust"]) -> Callable[[Tensor], Tensor]:
    """Elementwise -log sigmoid(z) where a share of the labels is wrong: cDPO, or its unbiased form (2403.00409)."""

    def of(z: Tensor) -> Tensor:
        right, wrong = (1 - label_smoothing) * -logsigmoid(z), label_smoothing * -logsigmoid(-z)
        return right + wrong if form == "conservative" else (right - wrong) / (1 - 2 * label_smoothing)

    return of


def pair_logistic(
    *,
    beta: Beta = 0.1,
    label_smoothing: Smoothing = 0.0,
    smoothing: Literal["conservative", "robust"] = "conservative",
) -> Loss:
    """-log sigmoid(beta (sum lr_w - sum lr_l)): DPO (arXiv 2305.18290 eq. 7); ln 2 where policy = reference."""
    return pair_loss(
        "pair_logistic",
        lambda current, batch: beta * log_ratio(current, batch).sum(1),
        smoothed(label_smoothing, smoothing),
        beta,
        needs=("chosen", "ref_logprob"),
    )


def pair_logistic_mean(
    *, beta: Beta = 2.0, gamma_beta_ratio: Annotated[float, Ge(0)] = 0.5, label_smoothing: Smoothing = 0.0
) -> Loss:
    """-log sigmoid(beta (mean logp_w - mean logp_l - gamma_beta_ratio)), no reference: SimPO (2405.14734 eq. 6)."""
    shape = smoothed(label_smoothing, "conservative")
    return pair_loss(
        "pair_logistic_mean",
        lambda current, batch: beta * _mean(torch.where(batch.active, current.logprob, 0.0), batch),
        lambda z: shape(z - beta * gamma_beta_ratio),
        beta,
        needs=("chosen",),
    )


def pair_squared(*, beta: Beta = 0.1, form: Literal["mean", "sum"] = "mean") -> Loss:
    """(lr_w - lr_l - 1/(2 beta))^2: IPO (arXiv 2310.12036 eq. 17).

    `form`: lr is the mean over a response's tokens (TRL) or their sum (eq. 17 as it is printed). A beta of one
    form is none of the other.
    """

    def score(current: Current, batch: Batch) -> Tensor:
        ratio = log_ratio(current, batch)
        return _mean(ratio, batch) if form == "mean" else ratio.sum(1)

    needs = ("chosen", "ref_logprob")
    return pair_loss("pair_squared", score, lambda h: (h - 1 / (2 * beta)) ** 2, beta, needs=needs)


def pair_logistic_kl(
    *,
    beta: Beta = 0.1,
    alpha: Annotated[float, Ge(0)] = 1.0,
    chosen_kl: Literal["differentiated", "detached"] = "differentiated",
) -> Loss:
    """-log sigmoid(beta (sum lr_w - sum lr_l - alpha (D_l - D_w))), D = sum of KL(reference || policy) over the tokens.

    TDPO (arXiv 2404.11999): the KL is that of the whole vocabulary. alpha 1 is TDPO1; TDPO2 has alpha 0.5 and
    `chosen_kl: detached`, no gradient through D_w.
    """

    def score(current: Current, batch: Batch) -> Tensor:
        kl = torch.where(batch.active, current.ref_kl, 0.0).sum(1)
        if chosen_kl == "detached":
            kl = torch.where(batch.chosen, kl.detach(), kl)
        return beta * (log_ratio(current, batch).sum(1) + alpha * kl)

    return pair_loss(
        "pair_logistic_kl",
        score,
        smoothed(0.0, "conservative"),
        beta,
        kl_by_side,
        needs=("chosen", "ref_logprob"),
        differentiates=("ref_kl",),
    )


def kl_by_side(current: Current, batch: Batch) -> dict[str, Tensor]:
    kl = torch.where(batch.active, current.ref_kl, 0.0).sum(1)
    chosen, rejected = pair_rows(batch)
    return {"kl_ref_policy/chosen": kl[chosen], "kl_ref_policy/rejected": kl[rejected]}


def pair_logistic_guided(
    *,
    beta: Beta = 0.1,
    alpha: Annotated[float, Ge(0)] = 0.5,
    guide_beta: Beta | None = None,
    floor: float = -math.inf,
) -> Loss:
    """-log sigmoid(beta (sum f lr_w - sum f lr_l)), f = 1 + alpha r on chosen and 1 - alpha r on rejected tokens.

    TGDPO (arXiv 2506.14574). r = guide_beta (guide_logprob - ref_logprob); `guide_beta` is `beta` where it is not
    given. `floor` bounds f from below (the paper assumes f > 0 and does not enforce it; where f < 0 the gradient of
    the token turns round).
    """
    guide_beta = beta if guide_beta is None else guide_beta

    def factor(batch: Batch) -> Tensor:
        guide = batch.need("guide_logprob", "pair_logistic_guided")
        reward = guide_beta * torch.where(batch.active, guide - batch.need("ref_logprob", "the guide"), 0.0)
        return 1 + alpha * torch.where(batch.chosen[:, None], reward, -reward)

    def measure(current: Current, batch: Batch) -> dict[str, Tensor]:
        f = factor(batch)[batch.active]  # before the floor, which would hide how often it acts
        return {"factor": f, "factor_min": f, "factor_max": f, "factor_negative": f < 0}

    return pair_loss(
        "pair_logistic_guided",
        lambda current, batch: beta * (factor(batch).clamp(min=floor) * log_ratio(current, batch)).sum(1),
        smoothed(0.0, "conservative"),
        beta,
        measure,
        needs=("chosen", "ref_logprob", "guide_logprob"),
    )


def chosen_nll(*, coef: Annotated[float, Ge(0)] = 1.0, form: Literal["sum", "mean"] = "sum") -> Loss:
    """-coef sum log p of a chosen response, or its mean over the tokens; mean over them: supervised fine-tuning."""

    def weigh(batch: Batch) -> Weighted:
        rows = batch.kept & batch.need("chosen", "chosen_nll")
        live = batch.active & rows[:, None]
        weight = live.to(batch.weight.dtype)
        if form == "mean":
            weight = weight / live.sum(1, keepdim=True).clamp(min=1)
        return Weighted(weight, live, float(rows.sum()))

    return Loss(
        "chosen_nll",
        unit="sequence",
        weigh=weigh,
        values=lambda current, batch: -current.logprob,
        needs=("chosen",),
        weighs=("chosen",),
        coef=coef,
        measure=lambda current, batch, weighted: {"nll": -current.logprob[weighted.live]},
    )


def best_of_n_beta(n: int) -> float:
    """beta_n = 1 / (2 (n - 1) sum_{k<n} 1/k), at which IPO's target is the mean log-ratio of best and worst of n.

    BoNBoN (arXiv 2406.00832). Raises `ValueError` for n < 2.
    """
    if n < 2:
        raise ValueError(f"the best and the worst of n = {n} are no pair; n must be at least 2")
    return 1 / (2 * (n - 1) * sum(1 / k for k in range(1, n)))


def best_of_n(
    *,
    n: Annotated[int, Ge(2)],
    alpha: Annotated[float, Ge(0), Le(1)] = 0.005,
    variant: Literal["paper", "code"] = "paper",
) -> Loss:
    """(1 - alpha) (sum lr_w - sum lr_l - (n - 1) H_{n-1})^2: BoNBoN's IPO term (arXiv 2406.00832).

    `variant: code` is what the released code computes instead: (1 - alpha) times DPO's loss at beta_n. Rows are the
    best and the worst of n responses of the reference. The likelihood term is `chosen_nll` with coef alpha.
    """
    beta = best_of_n_beta(n)
    base = pair_squared(beta=beta, form="sum") if variant == "paper" else pair_logistic(beta=beta)

    def check(group_size: int) -> None:
        if group_size != n:
            raise ValueError(f"n = {n}, and a group has {group_size}: the best and the worst are those of the group")

    return replace(base, name="best_of_n", coef=1 - alpha, check=check)
