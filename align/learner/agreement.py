"""How far the engine that sampled a batch is from the policy that learns from it: the update's first pass tells."""

from __future__ import annotations

import torch
from torch import Tensor

SUMS = ("sampler_gap/sum", "sampler_gap/tokens")  # what each row adds


def of_rows(sampler_logprob_BT: Tensor, logprob_BT: Tensor, counted_BT: Tensor) -> dict[str, Tensor]:
    """{name of `SUMS`: [B]} of some rows: nats by which the sampler's log-probabilities are above the policy's, and the
    tokens counted."""
    gap = torch.where(counted_BT, sampler_logprob_BT - logprob_BT, 0.0)
    return dict(zip(SUMS, (gap.double().sum(1), counted_BT.double().sum(1)), strict=True))


def summary(measured: dict[str, Tensor]) -> dict[str, float]:
    """{`sync/rollout_gap`: nats a token, `sync/rollout_gap_error`: what chance makes of it}, nothing where no row was
    sampled. Takes `SUMS` out of what was measured.

    The error is the root of the responses' summed squares: rounding is alike in the tokens of one. Their mean is not
    taken out, so that few responses, which cannot tell, never do.
    """
    rows = [measured.pop(name, torch.zeros(0)) for name in SUMS]
    if not rows[1].sum():
        return {}
    gap, tokens = rows
    mean, error = gap.sum() / tokens.sum(), gap.square().sum().sqrt() / tokens.sum()
    return {"sync/rollout_gap": float(mean), "sync/rollout_gap_error": float(error)}
