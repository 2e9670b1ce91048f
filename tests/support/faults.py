"""What goes wrong at a known step: objectives, told by `batch.progress`, and what a sync hands to the sampler."""

from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

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
    """The old policy, as the ratio has it, is 6 nats away in each token, from a step on: for `old_logprob: trainer`."""

    def apply(batch):
        return replace(batch, old_logprob=batch.sampler_logprob - 6) if batch.progress >= after else batch

    return _with(Transform("far", apply, needs=("sampler_logprob",)))


@contextmanager
def syncs_with(generator, change):
    """Each sync hands over weights as `change` makes them: it takes and gives {name: tensor} of the trained ones."""
    own = generator.sync

    def sync(model):
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        kept = {name: p.detach().clone() for name, p in parameters.items()}
        sent = change(kept)
        for name, p in parameters.items():
            p.data.copy_(sent[name])
        own(model)
        for name, p in parameters.items():
            p.data.copy_(kept[name])

    with patch.object(generator, "sync", sync):
        yield


def scale(by):
    """The adapter has another scale."""
    return lambda kept: {name: by * w if "lora_B" in name else w for name, w in kept.items()}


def without(part, start):
    """Weights in whose names `part` is do not arrive: the sampler has those it started with."""
    return lambda kept: {name: start[name] if part in name else w for name, w in kept.items()}


def one_step_old(first):
    """Each sync hands over what the one before should have: the first one `first`."""
    before = [first]

    def change(kept):
        before.append(kept)
        return before[-2]

    return change
