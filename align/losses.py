"""Losses: each is a weighted sum over tokens and the count that `learner.update` divides it by.

No loss divides by itself: the count is taken once over the whole batch, so micro-batches, padding and the
number of processes never change the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from align import ops
from align.batch import Batch


@dataclass(frozen=True)
class Current:
    """What the policy says now about some rows of the batch; carries the gradient."""

    logprob: Tensor  # [B,T] nats
    entropy: Tensor | None = None  # [B,T] nats, only where a loss asks for it in `differentiates`


@dataclass(frozen=True)
class Weighted:
    """What a loss sums over: a weight for each token, and the divisor of the sum."""

    weight: Tensor  # [B,T] float, 0 where a token counts for nothing
    live: Tensor  # [B,T] bool, tokens whose log-probability the loss reads; others are never computed
    count: float


@dataclass(frozen=True)
class Loss:
    """A term of the objective.

    `weigh` runs once on the whole batch; `token_loss` gives [B,T] values for a slice of it, which `total`
    weighs and sums; `measure` gives further values of each token, whose means go to the log.
    """

    name: str
    unit: str  # what the count counts: token, sequence or constant
    weigh: Callable[[Batch], Weighted]
    token_loss: Callable[[Current, Batch], Tensor]
    needs: tuple[str, ...] = ()
    differentiates: tuple[str, ...] = ()
    coef: float = 1.0
    measure: Callable[[Current, Batch], dict[str, Tensor]] = lambda current, batch: {}

    def total(self, current: Current, batch: Batch, weight: Tensor) -> Tensor:
        """Scalar coef * sum of weight * loss; whatever stands where the weight is 0 has no effect."""
        loss = self.token_loss(current, batch)
        return self.coef * torch.where(weight != 0, loss * weight, 0.0).sum()


class TokensPerRow(BaseModel):
    """Sum over tokens / (rows * tokens_per_row): Dr.GRPO (arXiv 2503.20783) as TRL's `dr_grpo` has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tokens_per_row: Annotated[float, Gt(0)]


class Constant(BaseModel):
    """Sum over tokens / constant: verl's `seq-mean-token-sum-norm`, which does not divide by the rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    constant: Annotated[float, Gt(0)]


Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"] | TokensPerRow | Constant
Denominator = Literal["full", "selected"]


def unit_of(aggregation: Aggregation) -> str:
    """What the count of this aggregation counts."""
    if isinstance(aggregation, Constant):
        return "constant"
    return "token" if aggregation == "token-mean" else "sequence"


def normalise(taken_BT: Tensor, counted_BT: Tensor, rows: int, aggregation: Aggregation) -> tuple[Tensor, float]:
    """([B,T] weight, count) such that sum(weight * loss) / count is the aggregation.

    `taken` are the tokens in the sum, `counted` those in the denominator, `rows` the sequences in the mean.
    """
    weight = taken_BT.double()
    if aggregation == "token-mean":
        return weight, float(counted_BT.sum())
    if isinstance(aggregation, Constant):
        return weight, aggregation.constant
    if isinstance(aggregation, TokensPerRow):
        return weight / aggregation.tokens_per_row, float(rows)
    if aggregation == "seq-mean-token-mean":
        weight = weight / counted_BT.sum(1, keepdim=True).clamp(min=1)
    return weight, float(rows)


def policy_weight(batch: Batch, aggregation: Aggregation, denominator: Denominator) -> Weighted:
    """Weights of the policy-gradient term: the active tokens, times their importance weight.

    `full` counts every response that has a reward, dropped ones included (GFPO eq. 2); `selected` counts
    the active tokens, and the rows that have one.
    """
    counted = batch.mask if denominator == "full" else batch.active
    rows = len(batch.mask) if denominator == "full" else int(counted.any(1).sum())
    weight, count = normalise(batch.active, counted, rows, aggregation)
    weight = torch.where(batch.active, weight * batch.weight, 0.0).to(batch.weight.dtype)
    live = (weight != 0) & (batch.need("advantage", "the loss") != 0)
    return Weighted(weight, live, count)


def clipped_surrogate(
    *,
    clip_low: Annotated[float, Ge(0), Lt(1)] = 0.2,
    clip_high: Annotated[float, Ge(0)] = 0.2,
    dual_clip: Annotated[float, Gt(1)] = math.inf,
    aggregation: Aggregation = "token-mean",
    denominator: Denominator = "full",
) -> Loss:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) for each token, r = exp(logprob - old_logprob).

    PPO (arXiv 1707.06347 eq. 7); clip_high > clip_low is DAPO's clip-higher (arXiv 2503.14476 eq. 8).
    `dual_clip` c bounds the loss of a negative advantage by -c A (arXiv 1912.09729); verl has 3.
    """

    def token_loss(current: Current, batch: Batch) -> Tensor:
        return _clipped(_ratio(current, batch), batch.advantage, clip_low, clip_high, dual_clip)

    return _surrogate(
        "clipped_surrogate", token_loss, _ratio, (clip_low, clip_high, dual_clip), aggregation, denominator
    )


def sequence_surrogate(
    *,
    ratio: Literal["mean", "product"] = "mean",
    form: Literal["sequence", "token"] = "sequence",
    clip_low: Annotated[float, Ge(0), Lt(1)] = 3e-4,
    clip_high: Annotated[float, Ge(0)] = 4e-4,
    aggregation: Aggregation = "seq-mean-token-mean",
    denominator: Denominator = "full",
) -> Loss:
    """The clipped surrogate with one ratio a response: GSPO (arXiv 2507.18071).

    `ratio`: `mean` is exp of the mean log-ratio over the response (GSPO), `product` exp of their sum (RLOO in
    TRL). `form`: `token` has the same value, but each token's gradient carries its own advantage (GSPO-token,
    eq. 14), which is what a selection of tokens needs. All tokens of the response are in the ratio.
    """

    def of_response(current: Current, batch: Batch) -> Tensor:
        log_ratio = torch.where(batch.mask, current.logprob - batch.need("old_logprob", "sequence_surrogate"), 0.0)
        total = log_ratio.sum(1, keepdim=True)
        if ratio == "mean":
            total = total / batch.length.clamp(min=1)[:, None]
        s = total.clamp(-ops.LOG_RATIO, ops.LOG_RATIO).exp().expand_as(log_ratio)
        return s if form == "sequence" else s.detach() * (log_ratio - log_ratio.detach()).exp()

    def token_loss(current: Current, batch: Batch) -> Tensor:
        return _clipped(of_response(current, batch), batch.advantage, clip_low, clip_high, math.inf)

    def weigh(batch: Batch) -> Weighted:
        """The ratio reads every token of a response, those without weight of their own too."""
        weighted = policy_weight(batch, aggregation, denominator)
        return replace(weighted, live=weighted.live.any(1, keepdim=True) & batch.mask)

    bounds = (clip_low, clip_high, math.inf)
    loss = _surrogate("sequence_surrogate", token_loss, of_response, bounds, aggregation, denominator)
    return replace(loss, weigh=weigh)


def weighted_logprob(
    *,
    ratio_low: Annotated[float, Ge(0)] = 0.0,
    ratio_high: Annotated[float, Gt(0)] = 5.0,
    aggregation: Aggregation = "token-mean",
    denominator: Denominator = "full",
) -> Loss:
    """-sg(clip(r, ratio_low, ratio_high)) A logprob for each token: CISPO (arXiv 2506.13585 eq. 4).

    The bounds are those of the ratio itself, as in TRL; verl's clip 0.2 / 0.2 is 0.8 and 1.2. No token's
    gradient is ever clipped away.
    """
    if ratio_low > ratio_high:
        raise ValueError(f"ratio_low ({ratio_low}) must not be above ratio_high ({ratio_high})")

    def token_loss(current: Current, batch: Batch) -> Tensor:
        bounded = _ratio(current, batch).detach().clamp(ratio_low, ratio_high)
        return -bounded * batch.advantage * torch.where(batch.mask, current.logprob, 0.0)

    return _surrogate("weighted_logprob", token_loss, _ratio, (math.inf, math.inf, math.inf), aggregation, denominator)


def _ratio(current: Current, batch: Batch) -> Tensor:
    """[B,T] exp(logprob - old_logprob), 1 outside the responses."""
    old = batch.need("old_logprob", "the ratio")
    return torch.where(batch.mask, current.logprob - old, 0.0).clamp(-ops.LOG_RATIO, ops.LOG_RATIO).exp()


def _clipped(ratio: Tensor, advantage: Tensor, low: float, high: float, dual: float) -> Tensor:
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    return torch.where(advantage < 0, torch.minimum(loss, -dual * advantage), loss)


def _surrogate(
    name: str,
    token_loss: Callable[[Current, Batch], Tensor],
    ratio: Callable[[Current, Batch], Tensor],
    bounds: tuple[float, float, float],
    aggregation: Aggregation,
    denominator: Denominator,
) -> Loss:
    """A loss that reads the credit; `bounds` (clip_low, clip_high, dual_clip) tell the log where it is flat."""
    clip_low, clip_high, dual_clip = bounds

    def measure(current: Current, batch: Batch) -> dict[str, Tensor]:
        r, a = ratio(current, batch), batch.advantage
        low, high = (r < 1 - clip_low) & (a < 0), (r > 1 + clip_high) & (a > 0)
        far = (r > dual_clip) & (a < 0)
        k3 = r - 1 - r.log()
        return {"ratio": r, "clip_low": low, "clip_high": high, "clipped": low | high | far, "kl_k3_old_policy": k3}

    return Loss(
        name,
        unit=unit_of(aggregation),
        weigh=lambda batch: policy_weight(batch, aggregation, denominator),
        token_loss=token_loss,
        needs=("advantage", "old_logprob"),
        measure=measure,
    )


def _every_token(batch: Batch, rows: Literal["kept", "all"], aggregation: Aggregation) -> Weighted:
    """Weights of a term that looks at all tokens of the kept rows, or of all rows, whatever was selected."""
    taken = batch.mask if rows == "all" else batch.mask & batch.kept[:, None]
    count_rows = len(batch.mask) if rows == "all" else int(batch.kept.sum())
    weight, count = normalise(taken, taken, count_rows, aggregation)
    return Weighted(weight.to(batch.weight.dtype), weight != 0, count)


KL_ESTIMATORS = {"k1": ops.kl_k1_policy_ref, "k2": ops.kl_k2_policy_ref, "k3": ops.kl_k3_policy_ref}


def kl_policy_ref(
    *,
    coef: Annotated[float, Gt(0)],
    estimator: Literal["k1", "k2", "k3"] = "k3",
    rows: Literal["kept", "all"] = "kept",
    aggregation: Aggregation = "token-mean",
) -> Loss:
    """coef * KL(policy || reference), estimated on the sampled tokens; GRPO has k3 (arXiv 2402.03300 eq. 4).

    `rows`: `kept` spends no pass on dropped rows; `all` acts on every response as GFPO eq. 2 does. The mean
    runs over the tokens of those rows. As a loss, k1 has no pull towards the reference on average (its
    expected gradient is 0); k2 and k3 do.
    """

    def token_loss(current: Current, batch: Batch) -> Tensor:
        ref = torch.where(batch.mask, batch.need("ref_logprob", "kl_policy_ref"), 0.0)
        return KL_ESTIMATORS[estimator](torch.where(batch.mask, current.logprob, 0.0), ref)

    return Loss(
        "kl_policy_ref",
        unit=unit_of(aggregation),
        weigh=lambda batch: _every_token(batch, rows, aggregation),
        token_loss=token_loss,
        needs=("ref_logprob",),
        coef=coef,
        measure=lambda current, batch: {f"kl_{estimator}_policy_ref": token_loss(current, batch)},
    )


def entropy_bonus(
    *, coef: Annotated[float, Gt(0)], rows: Literal["kept", "all"] = "kept", aggregation: Aggregation = "token-mean"
) -> Loss:
    """-coef * H, H the entropy in nats of the policy's full distribution at each token, at the sampling temperature."""
    return Loss(
        "entropy_bonus",
        unit=unit_of(aggregation),
        weigh=lambda batch: _every_token(batch, rows, aggregation),
        token_loss=lambda current, batch: -current.entropy,
        differentiates=("entropy",),
        coef=coef,
        measure=lambda current, batch: {"entropy": current.entropy},
    )


TERMS = (clipped_surrogate, sequence_surrogate, weighted_logprob, kl_policy_ref, entropy_bonus)
LOSSES = {loss.__name__: loss for loss in TERMS}
