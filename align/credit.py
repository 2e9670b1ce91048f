"""Run an objective's chain over a batch: who is kept, what each token earned, and which link took the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from align.batch import Batch
from align.losses import Current, Loss, Weighted
from align.objectives import Objective

# Fills the quantities named, for the rows marked; the last argument is who asks, for messages.
Annotate = Callable[[Batch, Sequence[str], Tensor, str], Batch]


@dataclass(frozen=True)
class Signal:
    """Of the generated tokens, how many can carry gradient and which link took the others."""

    generated: int
    carrying: int
    taken: dict[str, int]


@dataclass(frozen=True)
class Term:
    """One loss over a credited batch. The gradient is that of weight * sum / count."""

    loss: Loss
    weighted: Weighted
    weight: float

    def share(self, current: Current, batch: Batch, rows: Tensor | slice = slice(None)) -> Tensor:
        """Scalar: what `rows` add to the loss; `current` and `batch` hold these rows only."""
        if self.weighted.count == 0:
            return current.logprob.sum() * 0.0
        return self.weight * self.loss.total(current, batch, self.weighted.weight[rows]) / self.weighted.count


@dataclass(frozen=True)
class Credited:
    """What an objective made of the batch."""

    objective: Objective
    batch: Batch
    terms: tuple[Term, ...]
    signal: Signal

    @property
    def main(self) -> Term:
        """The first term that reads the credit; the first of all where none does."""
        return next((term for term in self.terms if "advantage" in term.loss.needs), self.terms[0])

    @property
    def live(self) -> Tensor:
        """[B,T] bool: tokens whose log-probability some term differentiates."""
        return torch.stack([term.weighted.live for term in self.terms]).any(0)

    @property
    def differentiates(self) -> set[str]:
        """Fields of `Current` that some term reads besides the log-probability."""
        return {name for term in self.terms for name in term.loss.differentiates}

    @property
    def coupled(self) -> Tensor:
        """[B] bool: rows whose loss depends on the other row of their pair, so that both need one micro-batch."""
        return self.batch.kept & self.objective.pairs


def assign(objective: Objective, batch: Batch, annotate: Annotate, in_update: Collection[str] = ()) -> Credited:
    """Apply the chain, then weigh the losses. Quantities are asked for when they are needed and for the rows
    that still take part, so a dropped row costs no pass over any model. Those `in_update` come from the learner."""
    generated = int(batch.mask.sum())
    left, taken = generated, {}
    for link in objective.chain:
        batch = link.apply(annotate(batch, link.needs, batch.kept, link.name))
        now = _carrying(batch)
        taken[link.name] = taken.get(link.name, 0) + left - now
        left = now
    terms = []
    for loss in objective.losses:
        batch = annotate(batch, loss.weighs, batch.kept, loss.name)
        weighted = loss.weigh(batch)
        needs = [name for name in loss.needs if name not in in_update]
        batch = annotate(batch, needs, weighted.live.any(1), loss.name)
        terms.append(Term(loss, weighted, objective.weight))
    return Credited(objective, batch, tuple(terms), Signal(generated, left, taken))


def _carrying(batch: Batch) -> int:
    alive = batch.active & (batch.weight != 0)
    return int((alive if batch.advantage is None else alive & (batch.advantage != 0)).sum())
