"""Objectives of runs that go wrong at a known step: what `batch.progress` says of it."""

from dataclasses import replace

import torch

from align.objectives import Objective, grpo
from align.transforms import Transform


def _with(transform: Transform) -> Objective:
    base = grpo()
    return replace(base, name=transform.name, chain=(*base.chain, transform))


def not_finite(*, at: float, groups: int = 1) -> Objective:
    """One token's advantage is not a number, in one step of at least so many groups; the check makes up three."""

    def apply(batch):
        advantage = batch.advantage.clone()
        if batch.progress == at and len(batch.group.unique()) >= groups:
            advantage[tuple(advantage.nonzero()[0])] = torch.nan
        return replace(batch, advantage=advantage)

    return _with(Transform("not_finite", apply, needs=("advantage",)))


def far(*, after: float) -> Objective:
    """The sampler, whose log-probabilities the ratio has, seems to be 6 nats away in each token, from a step on."""

    def apply(batch):
        return replace(batch, sampler_logprob=batch.sampler_logprob - 6) if batch.progress >= after else batch

    return _with(Transform("far", apply, needs=("sampler_logprob",)))
