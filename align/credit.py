"""Run an objective's chain over a batch: which rows are kept, each token's advantage, which transform removed what."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from align.batch import Batch
from align.losses.loss import Current, Loss, TokenWeights
from align.objectives.objective import Objective
from align.ranges import Scope
from align.ranks import exchange

# Returns the batch with the quantities of these names, for the rows marked; the last argument is who needs them, for
# messages.
Annotate = Callable[[Batch, Sequence[str], Tensor, str], Batch]


@dataclass(frozen=True)
class Signal:
    """Numbers of tokens of all ranks: put in by an environment, generated, left with a gradient, and removed by each
    transform."""

    environment: int  # not among the generated
    generated: int
    with_gradient: int
    removed_by: dict[str, int]  # {name of a transform: tokens}


@dataclass(frozen=True)
class Trace:
    """What each transform of a chain did, by its place in it. Nothing is copied: tensors are those of the batches."""

    taken_by: Tensor  # [B,T] int16, the transform that left the token without a gradient; -1: none did
    advantages: dict[int, Tensor]  # {transform that set advantages: [B,T] as it left them}
    known: dict[str, Tensor]  # {quantity that was asked for: [B] bool, the rows that it was computed for}
    state: dict[int, dict[str, Any]]  # {transform that remembers: its memory before the step}


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
    trace: Trace

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
    def token_weight(self) -> Tensor:
        """[B,T] weight of each token; where a loss counts pairs, 1 for every token that takes part."""
        if self.objective.preference:
            return self.batch.active.to(torch.float64)
        return self.primary.token_weights.weight.expand(self.batch.mask.shape)

    @property
    def coupled(self) -> Tensor:
        """[B] bool: rows whose loss depends on the other row of their pair, so that both need one micro-batch."""
        return self.batch.kept & self.objective.pairs


def assign(objective: Objective, batch: Batch, annotate: Annotate, in_update: Collection[str] = ()) -> Credited:
    """Apply the chain, then weigh the losses.

    `annotate` is called when a quantity is needed and for the rows that still take part, so a dropped row costs no
    forward pass of any model. It is not called for the quantities `in_update`: the learner computes those itself.
    Where the batch is this rank's part, so is what comes out; its counts are those of all ranks: collective.
    """
    known: dict[str, Tensor] = {}

    def ask(batch: Batch, names: Sequence[str], rows_B: Tensor, reader: str) -> Batch:
        known.update({name: known.get(name, False) | rows_B for name in names if getattr(start, name) is None})
        return annotate(batch, names, rows_B, reader)

    start, alive = batch, batch.mask
    state = {i: t.state.state_dict() for i, t in enumerate(objective.chain) if t.state}
    taken_by, advantages = torch.full(alive.shape, -1, dtype=torch.int16), {}
    for i, transform in enumerate(objective.chain):
        before = batch.advantage
        batch = _within(transform.scope, transform.apply, ask(batch, transform.needs, batch.kept, transform.name))
        now = _with_gradient(batch)
        taken_by = taken_by.masked_fill(now, -1).masked_fill(alive & ~now, i)
        alive = now
        if batch.advantage is not before:
            advantages[i] = batch.advantage
    terms = []
    for loss in objective.losses:
        batch = ask(batch, loss.weigh_needs, batch.kept, loss.name)
        weights = _weighed(loss, batch)
        needs = [name for name in loss.needs if name not in in_update]
        batch = ask(batch, needs, weights.trained.any(1), loss.name)
        terms.append(Term(loss, weights, objective.weight))
    trace = Trace(taken_by, advantages, known, state)
    return Credited(objective, batch, tuple(terms), _signal(objective, start, trace), trace)


def _within(scope: Scope, apply: Callable[[Batch], Batch], batch: Batch) -> Batch:
    """Apply a transform to this rank's groups, or to the batch of all ranks, of which this rank's rows are taken."""
    if scope == "group":
        return apply(batch)
    whole = exchange.whole(batch)
    return exchange.own(apply(whole), whole, batch)


def _weighed(loss: Loss, batch: Batch) -> TokenWeights:
    """The weights of this rank's rows, with the count of all ranks."""
    if loss.scope == "batch":
        weights = loss.weigh(exchange.whole(batch))
        return weights if batch.row is None else weights.rows(batch.row)
    weights = loss.weigh(batch)
    [count] = exchange.total(batch, [weights.count])
    return weights if loss.unit == "constant" else replace(weights, count=count)


def _with_gradient(batch: Batch) -> Tensor:
    """[B,T] bool: tokens that take part, with a weight and, where there are advantages, one that is not 0."""
    alive = batch.active & (batch.weight != 0)
    return alive if batch.advantage is None else alive & (batch.advantage != 0)


def _signal(objective: Objective, batch: Batch, trace: Trace) -> Signal:
    """The counts of a trace: a token that is given credit again behind the transform that took it is not taken."""
    taken = [(trace.taken_by == i).sum() for i in range(len(objective.chain))]
    counts = map(int, [batch.mask.sum(), (batch.present & ~batch.mask).sum(), *taken])
    generated, environment, *taken = exchange.total(batch, [*counts])
    removed_by = {transform.name: 0 for transform in objective.chain}
    for transform, count in zip(objective.chain, taken, strict=True):
        removed_by[transform.name] += count
    return Signal(environment, generated, generated - sum(removed_by.values()), removed_by)
