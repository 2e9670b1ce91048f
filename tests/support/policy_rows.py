"""Rows of a batch, and what a policy says of them."""

from dataclasses import replace

import torch

from align.model import layouts
from align.model.policy import Policy, Reference
from support.batches import batch_of


def rows():
    """Two groups of two, responses of 1 to 9 tokens."""
    batch = batch_of([0, 0, 1, 1], [9, 4, 1, 6], dtype=torch.float32)
    ids = torch.randint(3, 60, batch.mask.shape, generator=torch.Generator().manual_seed(0))
    return replace(batch, response_ids=ids, prompt_ids=[[5, 6, 7]] * 2 + [[8, 9]] * 2)


def said(model, quantities, layout=layouts.padded, reference=None, batch=None, chunk=100):
    batch = rows() if batch is None else batch
    inputs = layout.inputs(batch, batch.mask)
    wrapped = Policy(model, 0.7)
    if reference is not None:
        other = Policy(reference, 0.7)
        reference = Reference(other(inputs, ("hidden",))["hidden"], other.logits)
    found = wrapped(inputs, quantities, reference, chunk)
    return {name: inputs.scatter(value, batch.mask.shape) for name, value in found.items()}
