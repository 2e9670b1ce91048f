"""The losses of a micro-batch's rows, and what is measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from align.batch import Batch
from align.credit import Credited
from align.learner import agreement
from align.losses.loss import Current


def micro_batch(batch: Batch, rows: Tensor, current: Current) -> Batch:
    """The rows of a micro-batch. Where no earlier pass gave old log-probabilities, they are the current ones: nothing
    was updated yet."""
    part = batch.rows(rows)
    return part if part.old_logprob is not None else replace(part, old_logprob=current.logprob.detach())


def contribution(credits: Sequence[Credited], parts: Sequence[Batch], current: Current, rows: Tensor) -> Tensor:
    """Scalar: the contribution of these rows to the loss of the whole batch; 0 with a gradient of 0 for no rows."""
    given = [value for f in fields(current) if (value := getattr(current, f.name)) is not None]
    total = sum(value.sum() * 0.0 for value in given)  # ZeRO: heads that no loss here reads take part too
    for credited, part in zip(credits, parts, strict=False):
        total = total + sum(term.contribution(current, part, rows) for term in credited.terms)
    return total


def detached(current: Current) -> Current:
    return Current(**{f.name: None if (v := getattr(current, f.name)) is None else v.detach() for f in fields(current)})


def quantities_of(credits: Sequence[Credited], sources: Sequence[Sequence[Credited]]) -> tuple[str, ...]:
    """Quantities that the update's pass computes: those that these losses read with a gradient, and those of all heads,
    since under ZeRO each head takes part in each pass."""
    losses = [term.loss for source in sources for credited in source for term in credited.terms]
    names = {name for loss in losses for head in loss.heads for name in head.gives}
    names |= {name for credited in credits for name in credited.reads_current}
    return ("logprob", *sorted(names))


def trained_of(credits: Sequence[Credited]) -> Tensor:
    """[B,T] bool: tokens that some objective trains."""
    return torch.stack([credited.trained for credited in credits]).any(0)


@torch.no_grad()
def measure(
    credits: Sequence[Credited], parts: Sequence[Batch], current: Current, rows: Tensor, several: bool
) -> dict[str, Tensor]:
    """{metric: values} of these rows."""
    out = {}
    if parts and (sampler := parts[0].sampler_logprob) is not None:
        out = agreement.of_rows(sampler, current.logprob, trained_of(credits)[rows])
    for credited, part in zip(credits, parts, strict=False):
        for term in credited.terms:
            for name, value in term.loss.measure(current, part, term.token_weights.rows(rows)).items():
                out[f"{credited.objective.name}/{name}" if several else name] = value.float()
    return out


def joined(measured: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """{metric: its values of all micro-batches of all ranks}."""
    names = sorted({name for values in measured for name in values})
    return {name: torch.cat([part[name] for part in measured if name in part]) for name in names}
