"""Policy-gradient losses: clipped surrogates of the token's or the response's importance ratio."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from align import ops
from align.batch import Batch
from align.losses.loss import Aggregation, Current, Denominator, Loss, TokenWeights, normalise, unit_of
from align.ranges import ClipHigh, ClipLow, DualClip, RatioForm


def policy_weight(batch: Batch, aggregation: Aggregation, denominator: Denominator) -> TokenWeights:
    """Weights of a policy-gradient loss: the active tokens, times their importance weight.

    `denominator`: `full` counts the tokens of every response that has a reward, dropped ones included (GFPO eq. 2);
    `selected` counts the active tokens, and the rows that have one.
    """
    counted = batch.mask if denominator == "full" else batch.active
    rows = len(batch.mask) if denominator == "full" else int(counted.any(1).sum())
    weight, count = normalise(batch.active, counted, rows, aggregation)
    weight = torch.where(batch.active, weight * batch.weight, 0.0).to(batch.weight.dtype)
    trained = (weight != 0) & (batch.need("advantage", "the loss") != 0)
    return TokenWeights(weight, trained, count)


def clipped_surrogate(
    *,
    clip_low: ClipLow = 0.2,
    clip_high: ClipHigh = 0.2,
    dual_clip: DualClip = math.inf,
    aggregation: Aggregation = "token-mean",
    denominator: Denominator = "full",
) -> Loss:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) for each token, r = exp(logprob - old_logprob).

    PPO (arXiv 1707.06347 eq. 7); clip_high > clip_low is DAPO's clip-higher (arXiv 2503.14476 eq. 8).
    `dual_clip` c bounds the loss of a negative advantage by -c A (arXiv 1912.09729); verl has 3.
    """

    def values(current: Current, batch: Batch) -> Tensor:
        return _clipped(token_ratio(current, batch), batch.advantage, clip_low, clip_high, dual_clip)

    return surrogate(
        "clipped_surrogate", values, token_ratio, (clip_low, clip_high, dual_clip), aggregation, denominator
    )


def sequence_surrogate(
    *,
    ratio: Literal["mean", "product"] = "mean",
    form: RatioForm = "sequence",
    clip_low: ClipLow = 3e-4,
    clip_high: ClipHigh = 4e-4,
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

    def values(current: Current, batch: Batch) -> Tensor:
        return _clipped(of_response(current, batch), batch.advantage, clip_low, clip_high, math.inf)

    def weigh(batch: Batch) -> TokenWeights:
        """Weights of the tokens; `trained` is the whole response, for the ratio reads every token of it."""
        weights = policy_weight(batch, aggregation, denominator)
        return replace(weights, trained=weights.trained.any(1, keepdim=True) & batch.mask)

    bounds = (clip_low, clip_high, math.inf)
    loss = surrogate("sequence_surrogate", values, of_response, bounds, aggregation, denominator)
    return replace(loss, weigh=weigh)


def token_ratio(current: Current, batch: Batch) -> Tensor:
    """[B,T] exp(logprob - old_logprob), 1 outside the responses."""
    old = batch.need("old_logprob", "the ratio")
    return torch.where(batch.mask, current.logprob - old, 0.0).clamp(-ops.LOG_RATIO, ops.LOG_RATIO).exp()


def _clipped(ratio: Tensor, advantage: Tensor, low: float, high: float, dual: float) -> Tensor:
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    return torch.where(advantage < 0, torch.minimum(loss, -dual * advantage), loss)


def surrogate(
    name: str,
    values: Callable[[Current, Batch], Tensor],
    ratio: Callable[[Current, Batch], Tensor],
    bounds: tuple[float, float, float],
    aggregation: Aggregation,
    denominator: Denominator,
) -> Loss:
    """A loss of advantages and importance ratios; `values` and `ratio` give [B,T].

    `bounds` are (clip_low, clip_high, dual_clip); with them the log counts the tokens that a clip leaves without
    gradient.
    """
    clip_low, clip_high, dual_clip = bounds

    def measure(current: Current, batch: Batch, weights: TokenWeights) -> dict[str, Tensor]:
        r, a = ratio(current, batch)[weights.trained], batch.advantage[weights.trained]
        low, high = (r < 1 - clip_low) & (a < 0), (r > 1 + clip_high) & (a > 0)
        far = (r > dual_clip) & (a < 0)
        k3 = r - 1 - r.log()
        clips = {"clip_low": low, "clip_high": high, "clipped": low | high | far}
        return {"ratio": r, "ratio_max": r, **clips, "kl_k3_old_policy": k3}

    return Loss(
        name,
        unit=unit_of(aggregation),
        weigh=lambda batch: policy_weight(batch, aggregation, denominator),
        scope="group",
        values=values,
        needs=("advantage", "old_logprob"),
        measure=measure,
    )
