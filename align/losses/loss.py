"""The type of a loss: a weighted sum over tokens, sequences or pairs, and the count that it is divided by.

No loss divides by itself: the count is taken once over the whole batch, so micro-batches, padding and the
number of processes never change the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from align.batch import Batch
from align.losses.head import Head
from align.ranges import Divisor, Scope, Section


@dataclass(frozen=True)
class Current:
    """Outputs of the current policy and of the heads for some rows of the batch; they carry the gradient.

    All but `logprob` are there only where a loss names them in `reads_current`.
    """

    logprob: Tensor  # [B,T] nats
    entropy: Tensor | None = None  # [B,T] nats
    ref_kl: Tensor | None = None  # [B,T] nats, KL(reference || policy) over the whole vocabulary
    value: Tensor | None = None  # [B,T] of the value head, at the prefix of each token
    reward_mask: Tensor | None = None  # [B,T] >= 0 of the mask network, at the prefix of each token
    kl_mask: Tensor | None = None  # [B,T] >= 0, likewise


@dataclass(frozen=True)
class TokenWeights:
    """Weights of a loss: one for each token, row or pair, and the divisor of the weighted sum."""

    weight: Tensor  # [B,T], or [B,1] where a loss has one value a row; 0 where it counts for nothing
    trained: Tensor  # [B,T] bool, tokens whose current policy outputs the loss reads; others are never computed
    count: float  # of the whole batch, in `Loss.unit`

    def rows(self, index: Tensor) -> TokenWeights:
        """The weights of the rows at `index`; the count stays that of the whole batch."""
        return replace(self, weight=self.weight[index], trained=self.trained[index])


@dataclass(frozen=True)
class Loss:
    """A term of the objective: coef * sum(weight * value) / count.

    `weigh` runs once on the whole batch. `values` gives a value for each entry of the weight, for any rows of the
    batch. `measure` gives further values for the log, any number of them under each name: the log gets their mean
    over the batch, or the extreme where a name ends in `_min` or `_max`.
    """

    name: str
    unit: str  # what the count counts: token, sequence, pair or constant; rows of a pair stay together
    weigh: Callable[[Batch], TokenWeights]
    values: Callable[[Current, Batch], Tensor]
    needs: tuple[str, ...] = ()  # fields of the batch
    weigh_needs: tuple[str, ...] = ()  # those that `weigh` reads already, before it is known which rows are trained
    reads_current: tuple[str, ...] = ()  # fields of `Current`, besides logprob
    heads: tuple[Head, ...] = ()  # modules trained beside the policy, for fields of `Current` that heads compute
    coef: float = 1.0
    measure: Callable[[Current, Batch, TokenWeights], dict[str, Tensor]] = lambda current, batch, weights: {}
    scope: Scope = "batch"  # what `weigh` must see together; of `group` the counts of all ranks are added up
    check: Callable[[int], None] = lambda group_size: None  # raises ValueError where the group size cannot work
    warn: Callable[[Mapping[str, float]], str | None] = lambda metrics: None  # a warning from the step's metrics

    def total(self, current: Current, batch: Batch, weight: Tensor) -> Tensor:
        """Scalar coef * sum(weight * value); values where the weight is 0, NaN included, have no effect."""
        value = self.values(current, batch)
        return self.coef * torch.where(weight != 0, value * weight, 0.0).sum()


def summarised(measured: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of each measure over its values, or the extreme that its name asks for; no entry for no values."""
    reduce = {"_min": torch.min, "_max": torch.max}
    return {
        name: float(reduce.get(name[-4:], torch.mean)(value.double())) for name, value in measured.items() if len(value)
    }


class TokensPerRow(Section):
    """Sum over tokens / (rows * tokens_per_row): Dr.GRPO (arXiv 2503.20783) as TRL's `dr_grpo` has it."""

    tokens_per_row: Divisor


class Constant(Section):
    """Sum over tokens / constant: verl's `seq-mean-token-sum-norm`, which does not divide by the rows."""

    constant: Divisor


Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"] | TokensPerRow | Constant

Denominator = Literal["full", "selected"]


def unit_of(aggregation: Aggregation) -> str:
    """The unit of the count under this aggregation: token, sequence or constant."""
    if isinstance(aggregation, Constant):
        return "constant"
    return "token" if aggregation == "token-mean" else "sequence"


def normalise(summed_BT: Tensor, counted_BT: Tensor, rows: int, aggregation: Aggregation) -> tuple[Tensor, float]:
    """([B,T] weight, count) such that sum(weight * loss) / count is the aggregation.

    `summed` are the tokens in the sum, `counted` those in the denominator, `rows` the sequences in the mean.
    """
    weight = summed_BT.double()
    if aggregation == "token-mean":
        return weight, float(counted_BT.sum())
    if isinstance(aggregation, Constant):
        return weight, aggregation.constant
    if isinstance(aggregation, TokensPerRow):
        return weight / aggregation.tokens_per_row, float(rows)
    if aggregation == "seq-mean-token-mean":
        weight = weight / counted_BT.sum(1, keepdim=True).clamp(min=1)
    return weight, float(rows)
