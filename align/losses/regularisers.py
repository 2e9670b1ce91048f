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

Other = Literal["reference", "old_policy"]

# {whom the KL is to: (the quantity of the batch with its log-probabilities, how metrics name the pair)}
KL_TO: dict[Other, tuple[str, str]] = {
    "reference": ("ref_logprob", "policy_ref"),
    "old_policy": ("old_logprob", "policy_old"),
}


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
    to: Other = "reference",
    aggregation: Aggregation = "token-mean",
) -> Loss:
    """coef * KL(policy || reference), estimated on the sampled tokens; GRPO has k3 (arXiv 2402.03300 eq. 4).

    `rows`: `kept` costs no forward pass for dropped rows; `all` acts on every response as GFPO eq. 2 does. The mean
    runs over the tokens of those rows. As a loss, k1 has no pull towards the reference on average (its
    expected gradient is 0); k2 and k3 have one.

    k3 = q/p - 1 - log(q/p), q the reference's probability, p the policy's. Its gradient to log p is 1 - q/p, which has
    no bound: 1e4 where the policy is 9 nats below. So q/p is bounded at 100 (4.6 nats): the gradient is
    1 - min(q/p, 100), at most 99 in size, and the value beyond goes on as the tangent,
    99 - log(100) + 99 * (log(q/p) - log(100)). The metric `kl_k3_policy_ref_bounded` is the fraction of tokens beyond.
    k1 and k2 are never bounded: their gradients are 1 and log(p/q).

    `to: old_policy` is the KL to the policy before the update instead, as GFPO eq. 2 prints it, whose log-probabilities
    come from `sampling.old_logprob`. Before a step's first update the two are the same policy: with one update a step,
    k2 and k3 have no gradient, but for what sampler and trainer round differently.
    """
    quantity, name = KL_TO[to]

    def logprobs(current: Current, batch: Batch) -> tuple[Tensor, Tensor]:
        other = batch.need(quantity, "kl_policy_ref")
        return torch.where(batch.mask, current.logprob, 0.0), torch.where(batch.mask, other, 0.0)

    def values(current: Current, batch: Batch) -> Tensor:
        return KL_ESTIMATORS[estimator](*logprobs(current, batch))

    def measure(current: Current, batch: Batch, weights: TokenWeights) -> dict[str, Tensor]:
        out = {f"kl_{estimator}_{name}": values(current, batch)[weights.trained]}
        if estimator == "k3":
            out[f"kl_k3_{name}_bounded"] = ops.ref_ratio_bounded(*logprobs(current, batch))[weights.trained]
        return out

    return Loss(
        "kl_policy_ref",
        unit=unit_of(aggregation),
        weigh=lambda batch: _every_token(batch, rows, aggregation),
        scope="group",
        values=values,
        needs=(quantity,),
        coef=coef,
        measure=measure,
    )


def entropy_bonus(*, coef: PositiveCoef, rows: Rows = "kept", aggregation: Aggregation = "token-mean") -> Loss:
    """-coef * H, H the entropy in nats of the policy's full distribution at each token, at the sampling temperature."""
    return Loss(
        "entropy_bonus",
        unit=unit_of(aggregation),
        weigh=lambda batch: _every_token(batch, rows, aggregation),
        scope="group",
        values=lambda current, batch: -current.entropy,
        reads_current=("entropy",),
        coef=coef,
        measure=lambda current, batch, weights: {"entropy": current.entropy[weights.trained]},
    )
