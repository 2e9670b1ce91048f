"""PPO's value loss."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor

from align.batch import Batch
from align.heads import Value
from align.losses.loss import Aggregation, Current, Loss, Weighted, normalise, unit_of


def value_loss(
    *,
    coef: Annotated[float, Gt(0)] = 1.0,
    clip: Annotated[float, Gt(0)] = math.inf,
    lr: Annotated[float, Gt(0)] | None = None,
    hidden: Literal["shared", "detached"] = "detached",
    aggregation: Aggregation = "seq-mean-token-mean",
) -> Loss:
    """coef / 2 * max((V - R)^2, (V_old + clip(V - V_old, -clip, clip) - R)^2) over the active tokens.

    PPO as OpenRLHF and RTO's code have it (clip 0.2). `lr` is that of the value head, by default the policy's;
    `hidden: shared` lets its gradient into the policy, whose learning rate then counts there.
    """

    def weigh(batch: Batch) -> Weighted:
        weight, count = normalise(batch.active, batch.mask, len(batch.mask), aggregation)
        return Weighted(weight.to(batch.weight.dtype), batch.active, count)

    def values(current: Current, batch: Batch) -> Tensor:
        old, returns, value = (torch.where(batch.active, v, 0.0) for v in (batch.value, batch.returns, current.value))
        near = old + (value - old).clamp(-clip, clip)
        return 0.5 * torch.maximum((value - returns) ** 2, (near - returns) ** 2)

    def measure(current: Current, batch: Batch, weighted: Weighted) -> dict[str, Tensor]:
        value, returns = current.value[weighted.live], batch.returns[weighted.live]
        return {"value": value, "returns": returns, "value_error": (value - returns).abs()}

    return Loss(
        "value_loss",
        unit=unit_of(aggregation),
        weigh=weigh,
        values=values,
        needs=("value", "returns"),
        differentiates=("value",),
        heads=(Value(hidden, lr),),
        coef=coef,
        measure=measure,
    )
