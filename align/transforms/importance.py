"""Weighing tokens by how far the sampler's policy is from the trainer's."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from align import ops
from align.batch import Batch
from align.transforms.transform import Stage, Transform


def importance_weight(
    *,
    level: Literal["token", "sequence"] = "token",
    mode: Literal["truncate", "mask"] = "truncate",
    high: Annotated[float, Gt(0)] = 2.0,
    low: Annotated[float, Ge(0)] = 0.0,
) -> Transform:
    """w = pi_old / pi_sampler on each token's loss, no gradient: corrects what the sampler computes differently.

    `truncate` clamps w to [low, high] (TIS), `mask` gives 0 outside (MIS). `sequence` uses the product over
    the response for each of its tokens. Needs `sampling.old_logprob: trainer`: where the sampler's
    log-probabilities already are the old ones, the ratio contains w and it would count twice.
    """

    if low > high:
        raise ValueError(f"low ({low}) must not be above high ({high})")

    def apply(batch: Batch) -> Batch:
        old = batch.need("old_logprob", "importance_weight")
        sampler = batch.need("sampler_logprob", "importance_weight")
        log_w: Tensor = torch.where(batch.mask, old - sampler, 0.0)
        if level == "sequence":
            log_w = log_w.sum(1, keepdim=True).expand_as(log_w)
        w = log_w.clamp(-ops.LOG_RATIO, ops.LOG_RATIO).exp()
        inside = (w >= low) & (w <= high)
        w = w.clamp(low, high) if mode == "truncate" else torch.where(inside, w, 0.0)
        return replace(batch, weight=batch.weight * torch.where(batch.mask, w, 0.0))

    return Transform("importance_weight", apply, stage=Stage.WEIGHT, needs=("old_logprob", "sampler_logprob"))
