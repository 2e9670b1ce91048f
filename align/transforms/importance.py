"""Importance weights: correct for the difference between the sampler's policy and the trainer's."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from align import ops
from align.batch import Batch
from align.ranges import RatioHigh, RatioLow
from align.transforms.transform import Stage, Transform


def importance_weight(
    *,
    level: Literal["token", "sequence"] = "token",
    mode: Literal["truncate", "mask"] = "truncate",
    high: RatioHigh = 2.0,
    low: RatioLow = 0.0,
) -> Transform:
    """Multiply each token's weight by w = exp(old_logprob - sampler_logprob), without gradient.

    Corrects for what the sampler computes differently. `mode`: `truncate` clamps w to [low, high] (truncated
    importance sampling, TIS), `mask` gives 0 outside (MIS). `level: sequence` uses the product over the response for
    each of its tokens. Needs `sampling.old_logprob: trainer`: where the sampler's log-probabilities already are the
    old ones, the ratio contains w and it would count twice. Raises `ValueError` for low > high.
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

    return Transform(
        "importance_weight", apply, stage=Stage.WEIGHT, needs=("old_logprob", "sampler_logprob"), scope="group"
    )
