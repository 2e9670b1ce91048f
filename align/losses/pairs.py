"""Losses of preference pairs: a score for each response, and a function of the difference of a pair's two.

A pair is a group of two kept rows, one of them `chosen`. Sums and means run over the active tokens of a response;
the loss is the mean over pairs, never over tokens. Log-ratios are those of the policy to the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from align.batch import Batch
from align.losses.loss import Current, Loss, TokenWeights
from align.ranges import Beta, Coef, LabelSmoothing, Smoothing


class PairError(ValueError):
    """Raised for a group whose kept rows are no pair; `group` is its number."""

    def __init__(self, group: int):
        super().__init__("a pair is exactly one chosen and one rejected response among the kept rows of a group")
        self.group = group


def pair_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """([P] int64 rows of the chosen, [P] of the rejected responses), pair by pair.

    Raises `PairError` for a group whose kept rows are not one chosen and one rejected response.
    """
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


def mean_over_tokens(value_BT: Tensor, batch: Batch) -> Tensor:
    """[B] sum over T / number of active tokens, 0 where there is none; `value` is 0 at tokens that take no part."""
    return value_BT.sum(1) / batch.active.sum(1).clamp(min=1)


def _each_pair(batch: Batch) -> TokenWeights:
    """Weight 1 at the chosen row of each pair, whose value is that of the pair; the count is the number of pairs."""
    chosen, _ = pair_rows(batch)
    weight = torch.zeros(len(batch.mask), 1, dtype=batch.weight.dtype)
    weight[chosen] = 1.0
    return TokenWeights(weight, batch.active, float(len(chosen)))


def pair_loss(
    name: str,
    score: Callable[[Current, Batch], Tensor],
    of_difference: Callable[[Tensor], Tensor],
    beta: float,
    measure: Callable[[Current, Batch], dict[str, Tensor]] = lambda current, batch: {},
    **rest,
) -> Loss:
    """of_difference(score[chosen] - score[rejected]), mean over pairs; `score` gives [B], `of_difference` [P] of [P].

    The log has that difference as `logit`, and beside it DPO's `margin`, beta times the difference of
    the summed log-ratios, with its accuracy, wherever there is a reference: a loss that falls may still prefer
    the wrong response. `rest` are further fields of `Loss`.
    """

    def values(current: Current, batch: Batch) -> Tensor:
        chosen, rejected = pair_rows(batch)
        score_B = score(current, batch)
        out = torch.zeros(len(batch.mask), 1, dtype=score_B.dtype)
        return out.index_put((chosen,), of_difference(score_B[chosen] - score_B[rejected])[:, None])

    def measured(current: Current, batch: Batch, weights: TokenWeights) -> dict[str, Tensor]:
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

    fixed = dict(unit="pair", weigh=_each_pair, weigh_needs=("chosen",), values=values, measure=measured, scope="group")
    return Loss(name, **fixed, **rest)


def smoothed(label_smoothing: float, form: LabelSmoothing) -> Callable[[Tensor], Tensor]:
    """The function -log sigmoid(z), elementwise, where a share of the labels is wrong.

    cDPO, or its unbiased form (arXiv 2403.00409 `robust`). A share of 0 is -log sigmoid(z) itself.
    """

    def of_difference(z: Tensor) -> Tensor:
        right, wrong = (1 - label_smoothing) * -logsigmoid(z), label_smoothing * -logsigmoid(-z)
        return right + wrong if form == "conservative" else (right - wrong) / (1 - 2 * label_smoothing)

    return of_difference


def pair_logistic(
    *, beta: Beta = 0.1, label_smoothing: Smoothing = 0.0, smoothing: LabelSmoothing = "conservative"
) -> Loss:
    """-log sigmoid(beta * (log_ratio[chosen] - log_ratio[rejected])), log-ratios summed over tokens: DPO.

    arXiv 2305.18290 eq. 7; ln 2 where policy = reference.
    """
    return pair_loss(
        "pair_logistic",
        lambda current, batch: beta * log_ratio(current, batch).sum(1),
        smoothed(label_smoothing, smoothing),
        beta,
        needs=("chosen", "ref_logprob"),
    )


def pair_squared(*, beta: Beta = 0.1, form: Literal["mean", "sum"] = "mean") -> Loss:
    """(log_ratio[chosen] - log_ratio[rejected] - 1 / (2 beta))^2: IPO (arXiv 2310.12036 eq. 17).

    `form`: a response's log-ratio is the mean over its tokens (TRL) or their sum (eq. 17 as it is printed). The two
    need different betas.
    """

    def score(current: Current, batch: Batch) -> Tensor:
        ratio = log_ratio(current, batch)
        return mean_over_tokens(ratio, batch) if form == "mean" else ratio.sum(1)

    needs = ("chosen", "ref_logprob")
    return pair_loss("pair_squared", score, lambda h: (h - 1 / (2 * beta)) ** 2, beta, needs=needs)


def kl_by_side(current: Current, batch: Batch) -> dict[str, Tensor]:
    """{metric: [P]} KL(reference || policy) in nats, summed over each response's tokens, by side of the pair."""
    kl = torch.where(batch.active, current.ref_kl, 0.0).sum(1)
    chosen, rejected = pair_rows(batch)
    return {"kl_ref_policy/chosen": kl[chosen], "kl_ref_policy/rejected": kl[rejected]}


def chosen_nll(*, coef: Coef = 1.0, form: Literal["sum", "mean"] = "sum") -> Loss:
    """-coef * sum of logprob over the tokens of a chosen response, averaged over responses: supervised fine-tuning.

    `form: mean` has the mean over a response's tokens in place of the sum.
    """

    def weigh(batch: Batch) -> TokenWeights:
        rows = batch.kept & batch.need("chosen", "chosen_nll")
        trained = batch.active & rows[:, None]
        weight = trained.to(batch.weight.dtype)
        if form == "mean":
            weight = weight / trained.sum(1, keepdim=True).clamp(min=1)
        return TokenWeights(weight, trained, float(rows.sum()))

    return Loss(
        "chosen_nll",
        unit="sequence",
        weigh=weigh,
        scope="group",
        values=lambda current, batch: -current.logprob,
        needs=("chosen",),
        weigh_needs=("chosen",),
        coef=coef,
        measure=lambda current, batch, weights: {"nll": -current.logprob[weights.trained]},
    )
