"""Terms to add to an objective: KL to the reference, entropy bonus."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from align import ops
from align.batch import Batch
from align.losses.loss import Aggregation, Current, Loss, TokenWeights, normalise, unit_of
from align.ranges import PositiveCoef

KL_ESTIMATORS = {"k1": ops.kl_k1_policy_ref, "k2": ops.kl_k2_policy_ref, "k3": ops.kl_k3_policy_ref}

Rows = Literal["kept", "all"]


def _every_token(batch: Batch, rows: Rows, aggregation: Aggregation) -> TokenWeights:
    """Weights of a term that looks at all tokens of the kept rows, or of all rows, whatever was selected."""
    summed = batch.mask if rows == "all" else batch.mask & batch.kept[:, None]
    count_rows = len(batch.mask) if rows == "all" else int(batch.kept.sum())
    weight, count = normalise(summed, summed, count_rows, aggregation)
    return TokenWeights(weight.to(batch.weight.dtype), weight != 0, count)


def kl_policy_ref(
    *,
    coef: PositiveCoef,
    estimator: Literal["k1", "k2", "k3"] = "k3",
    rows: Rows = "kept",
    aggregation: Aggregation = "token-mean",
) -> Loss:
    """coef * KL(policy || reference), estimated on the sampled tokens; GRPO has k3 (arXiv 2402.03300 eq. 4).

    `rows`: `kept` costs no forward pass for dropped rows; `all` acts on every response as GFPO eq. 2 does. The mean
    runs over the tokens of those rows. As a loss, k1 has no pull towards the reference on average (its
    expected gradient is 0); k2 and k3 have one.
    """

    def values(current: Current, batch: Batch) -> Tensor:
        ref = torch.where(batch.mask, batch.need("ref_logprob", "kl_policy_ref"), 0.0)
        return KL_ESTIMATORS[estimator](torch.where(batch.mask, current.logprob, 0.0), ref)

    return Loss(
        "kl_policy_ref",
        unit=unit_of(aggregation),
        weigh=lambda batch: _every_token(batch, rows, aggregation),
        values=values,
        needs=("ref_logprob",),
        coef=coef,
        measure=lambda current, batch, weights: {f"kl_{estimator}_policy_ref": values(current, batch)[weights.trained]},
    )


def entropy_bonus(*, coef: PositiveCoef, rows: Rows = "kept", aggregation: Aggregation = "token-mean") -> Loss:
    """-coef * H, H the entropy in nats of the policy's full distribution at each token, at the sampling temperature."""
    return Loss(
        "entropy_bonus",
        unit=unit_of(aggregation),
        weigh=lambda batch: _every_token(batch, rows, aggregation),
        values=lambda current, batch: -current.entropy,
        reads_current=("entropy",),
        coef=coef,
        measure=lambda current, batch, weights: {"entropy": current.entropy[weights.trained]},
    )
