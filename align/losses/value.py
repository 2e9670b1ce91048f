"""PPO's value loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from align.batch import Batch
from align.losses.loss import Aggregation, Current, Loss, TokenWeights, normalise, unit_of
from align.ranges import ClipBound, HeadLearningRate, PositiveCoef, ValueHidden

if TYPE_CHECKING:  # reading a recipe loads no engine
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Value:
    """The value head of PPO: linear on the policy's last hidden state."""

    hidden: ValueHidden  # detached: its gradient stops here and never reaches the policy
    lr: float | None  # None: that of the policy

    name = "value"
    reads = "policy"
    gives = ("value",)
    weight_decay = None

    def build(self, config: PretrainedConfig) -> nn.Module:
        """The head with its first weights, of the width of this model."""
        return ValueHead(config.get_text_config().hidden_size, detached=self.hidden == "detached")


class ValueHead(nn.Module):
    """A linear map of the last hidden state. Its weights start at 0, so the first value of every prefix is 0."""

    def __init__(self, width: int, detached: bool):
        super().__init__()
        self.linear = nn.Linear(width, 1)
        self.detached = detached
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Sequence[Tensor]) -> dict[str, Tensor]:
        """{value: [R,N] float32}, from one [R,N,D] a layer."""
        last = hidden[-1].detach() if self.detached else hidden[-1]
        return {"value": self.linear(last.to(self.linear.weight.dtype))[..., 0].float()}


def value_loss(
    *,
    coef: PositiveCoef = 1.0,
    clip: ClipBound = math.inf,
    lr: HeadLearningRate | None = None,
    hidden: ValueHidden = "detached",
    aggregation: Aggregation = "seq-mean-token-mean",
) -> Loss:
    """coef / 2 * max((V - R)^2, (V_old + clip(V - V_old, -clip, clip) - R)^2) over the active tokens.

    V is the value head now, V_old before the update, R the returns. PPO as OpenRLHF and RTO's code have it (clip 0.2).
    `lr` is that of the value head, by default the policy's; `hidden: shared` lets its gradient into the policy too,
    which follows it with its own learning rate.
    """

    def weigh(batch: Batch) -> TokenWeights:
        weight, count = normalise(batch.active, batch.mask, len(batch.mask), aggregation)
        return TokenWeights(weight.to(batch.weight.dtype), batch.active, count)

    def values(current: Current, batch: Batch) -> Tensor:
        old, returns, value = (torch.where(batch.active, v, 0.0) for v in (batch.value, batch.returns, current.value))
        near = old + (value - old).clamp(-clip, clip)
        return 0.5 * torch.maximum((value - returns) ** 2, (near - returns) ** 2)

    def measure(current: Current, batch: Batch, weights: TokenWeights) -> dict[str, Tensor]:
        value, returns = current.value[weights.trained], batch.returns[weights.trained]
        return {"value": value, "returns": returns, "value_error": (value - returns).abs()}

    return Loss(
        "value_loss",
        unit=unit_of(aggregation),
        weigh=weigh,
        scope="group",
        values=values,
        needs=("value", "returns"),
        reads_current=("value",),
        heads=(Value(hidden, lr),),
        coef=coef,
        measure=measure,
    )
