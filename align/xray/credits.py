"""What an objective made of a batch, as the page shows it: from the record of a run, or from a replay of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite

import numpy as np
import torch

from align.replay import Replayed, Result
from align.result.samples import Decision, RecordedRollout

# In `taken_by`: no piece took the token; its response is not in the batch; an environment or a tool put it in.
CARRIES, NO_PART, PUT_IN = -1, -2, -3


@dataclass(frozen=True)
class Credits:
    """One objective over one batch: an entry a response, arrays of one value a token. NaN is what is not known."""

    name: str
    pieces: tuple[str, ...]  # its transforms in order, then its loss where that is known to take tokens
    kept: list[bool]
    taken_by: list[np.ndarray]  # [T] int, place of the piece that took the token, CARRIES or NO_PART
    after: dict[int, list[np.ndarray]]  # {piece that set advantages: advantages as it left them}
    credit: list[np.ndarray]  # [T] float64, advantages, or what a loss of pairs implies
    weight: list[np.ndarray]  # [T] float64
    implied: bool = False  # whether the credit is what a loss implies
    facts: dict[str, float | str] = field(default_factory=dict)  # loss, count, unit, measures

    @property
    def push(self) -> list[np.ndarray]:
        """[T] credit times weight of each token; 0 where a piece took it."""
        rows = zip(self.credit, self.weight, self.taken_by, strict=True)
        return [np.where(taken == CARRIES, credit * weight, 0.0) for credit, weight, taken in rows]

    def waterfall(self) -> list[tuple[str, int]]:
        """(what, tokens): generated, then taken by each piece, then those that carry a gradient."""
        places = np.concatenate([*self.taken_by, np.zeros(0, int)])
        taken = [(name, int((places == place).sum())) for place, name in enumerate(self.pieces)]
        return [
            ("generated", int((places >= CARRIES).sum())),
            *taken,
            ("carrying gradient", int((places == CARRIES).sum())),
        ]


def recorded(rollouts: Mapping[str, RecordedRollout]) -> list[Credits]:
    """What the run's objectives decided on a batch, as they wrote it down; nothing for lines without decisions."""
    rows = list(rollouts.values())
    decided = next((row.decisions for row in rows if row.decisions), [])
    return [_chosen_only(_recorded(rows, number, decision), rows) for number, decision in enumerate(decided)]


def _recorded(rows: Sequence[RecordedRollout], number: int, first: Decision) -> Credits:
    found = [row.decisions[number] if len(row.decisions) > number else None for row in rows]
    lengths = [len(row.response_ids) for row in rows]
    nothing = [np.full(n, np.nan) for n in lengths]
    places = sorted({place for d in found if d for place, values in enumerate(d.after) if values is not None})
    after = {
        place: [_floats(d.after[place]) if d and d.after[place] else no for d, no in zip(found, nothing, strict=True)]
        for place in places
    }
    return Credits(
        name=first.name,
        pieces=tuple(first.transforms),
        kept=[bool(d and d.kept) for d in found],
        taken_by=[
            np.array([PUT_IN if by is None else by for by in d.taken_by], int) if d else np.full(n, NO_PART)
            for d, n in zip(found, lengths, strict=True)
        ],
        after=after,
        credit=[_floats(d.advantage) if d and d.advantage else no for d, no in zip(found, nothing, strict=True)],
        weight=[_floats(d.weight) if d else no for d, no in zip(found, nothing, strict=True)],
    )


def replayed(batch: Replayed) -> list[Credits]:
    """What objectives make of a batch that was replayed, and what their losses tell."""
    rows = list(batch.rollouts.values())
    return [_chosen_only(_replayed(batch, result), rows) for result in batch.results]


def _replayed(batch: Replayed, result: Result) -> Credits:
    credited, trace = result.credited, result.credited.trace
    pieces, taken_by = [transform.name for transform in credited.objective.chain], trace.taken_by
    if "advantage" in credited.primary.loss.needs:  # clipping leaves tokens without gradient
        taken_by = torch.where((taken_by == CARRIES) & ~result.carrying, len(pieces), taken_by)
        pieces.append(credited.primary.loss.name)
    places = [(batch.row_of.get(place), len(row.response_ids)) for place, row in batch.rollouts.items()]

    def rows(values_BT: torch.Tensor | None, nothing: float) -> list[np.ndarray]:
        """A row for each rollout, `nothing` where it is in no batch."""
        return [
            np.full(n, nothing) if row is None or values_BT is None else values_BT[row, :n].detach().numpy()
            for row, n in places
        ]

    facts = {name: value for name, value in result.summary.items() if isinstance(value, str | int | float)}
    return Credits(
        name=credited.objective.name,
        pieces=tuple(pieces),
        kept=[row is not None and bool(credited.batch.kept[row]) for row, _ in places],
        taken_by=[row.astype(int) for row in rows(taken_by, NO_PART)],
        after={place: rows(values, np.nan) for place, values in trace.advantages.items()},
        credit=[row.astype(np.float64) for row in rows(credited.batch.advantage, np.nan)],
        weight=[row.astype(np.float64) for row in rows(credited.token_weight, np.nan)],
        implied=credited.objective.preference,
        facts={name: value for name, value in facts.items() if isinstance(value, str) or isfinite(value)},
    )


def with_loss(decided: Credits, replay: Credits) -> Credits:
    """What was decided, with what only a loss tells: the tokens that it took, the credit that it implies, its value."""
    same = len(replay.pieces) == len(decided.pieces) + 1
    taken = [
        np.where((then == CARRIES) & (now == len(decided.pieces)), now, then) if same else then
        for then, now in zip(decided.taken_by, replay.taken_by, strict=True)
    ]
    credit = replay.credit if replay.implied else decided.credit
    pieces = replay.pieces if same else decided.pieces
    return replace(decided, pieces=pieces, taken_by=taken, credit=credit, implied=replay.implied, facts=replay.facts)


def _chosen_only(credits: Credits, rows: Sequence[RecordedRollout]) -> Credits:
    """Credits of the tokens that the policy chose; of those that an environment or a tool put in nothing is known."""

    def rest(arrays: Sequence[np.ndarray], nothing: float) -> list[np.ndarray]:
        return [np.where(row.mask, values, nothing) for values, row in zip(arrays, rows, strict=True)]

    return replace(
        credits,
        taken_by=rest(credits.taken_by, PUT_IN),
        after={place: rest(arrays, np.nan) for place, arrays in credits.after.items()},
        credit=rest(credits.credit, np.nan),
        weight=rest(credits.weight, np.nan),
    )


def _floats(values: Sequence[float | None]) -> np.ndarray:
    """float64 of a stream; what nine digits say of a float32, in which a run computes, is that float32 to the bit."""
    given = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    distinct, place = np.unique(given, return_inverse=True)
    single = distinct.astype(np.float32).astype(np.float64)
    short = [float(f"{near:.9g}") == value for near, value in zip(single, distinct, strict=True)]
    return np.where(short, single, distinct)[place]
