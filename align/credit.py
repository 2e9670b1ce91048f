"""Run an objective's chain over a batch: which rows are kept, each token's advantage, which transform removed what."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from align.batch import Batch
from align.losses.loss import Current, Loss, TokenWeights
from align.objectives.objective import Objective

# Returns the batch with the quantities of these names, for the rows marked; the last argument is who needs them, for
# messages.
Annotate = Callable[[Batch, Sequence[str], Tensor, str], Batch]


@dataclass(frozen=True)
class Signal:
    """Numbers of tokens: generated, left with a gradient, and removed by each transform."""

    generated: int
    with_gradient: int
    removed_by: dict[str, int]  # {name of a transform: tokens}


@dataclass(frozen=True)
class Term:
    """One loss over a credited batch; it adds weight * sum / count to what is minimised."""

    loss: Loss
    token_weights: TokenWeights
    weight: float

    def contribution(self, current: Current, batch: Batch, rows: Tensor | slice = slice(None)) -> Tensor:
        """Scalar that `rows` add to the loss; `current` and `batch` hold these rows only."""
        if self.token_weights.count == 0:
            return current.logprob.sum() * 0.0
        return self.weight * self.loss.total(current, batch, self.token_weights.weight[rows]) / self.token_weights.count


@dataclass(frozen=True)
class Credited:
    """The batch with the advantages that an objective assigned, and the objective's losses with their weights."""

    objective: Objective
    batch: Batch
    terms: tuple[Term, ...]
    signal: Signal

    @property
    def primary(self) -> Term:
        """The first term that reads the advantages; the first of all where none does."""
        return next((term for term in self.terms if "advantage" in term.loss.needs), self.terms[0])

    @property
    def trained(self) -> Tensor:
        """[B,T] bool: tokens whose current policy outputs some term reads."""
        return torch.stack([term.token_weights.trained for term in self.terms]).any(0)

    @property
    def reads_current(self) -> set[str]:
        """Fields of `Current` that some term reads besides the log-probability."""
        return {name for term in self.terms for name in term.loss.reads_current}

    @property
    def coupled(self) -> Tensor:
        """[B] bool: rows whose loss depends on the other row of their pair, so that both need one micro-batch."""
        return self.batch.kept & self.objective.pairs


def assign(objective: Objective, batch: Batch, annotate: Annotate, in_update: Collection[str] = ()) -> Credited:
    """Apply the chain, then weigh the losses.

    `annotate` is called when a quantity is needed and for the rows that still take part, so a dropped row costs no
    forward pass of any model. It is not called for the quantities `in_update`: the learner computes those itself.
    """
    generated = int(batch.mask.sum())
    left, removed_by = generated, {}
    for transform in objective.chain:
        batch = transform.apply(annotate(batch, transform.needs, batch.kept, transform.name))
        now = _with_gradient(batch)
        removed_by[transform.name] = removed_by.get(transform.name, 0) + left - now
        left = now
    terms = []
    for loss in objective.losses:
        batch = annotate(batch, loss.weigh_needs, batch.kept, loss.name)
        weights = loss.weigh(batch)
        needs = [name for name in loss.needs if name not in in_update]
        batch = annotate(batch, needs, weights.trained.any(1), loss.name)
        terms.append(Term(loss, weights, objective.weight))
    return Credited(objective, batch, tuple(terms), Signal(generated, left, removed_by))


def _with_gradient(batch: Batch) -> int:
    alive = batch.active & (batch.weight != 0)
    return int((alive if batch.advantage is None else alive & (batch.advantage != 0)).sum())
