"""Bring what a step's record needs to the main process: the recorded responses of all ranks, with their credit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from align.credit import Credited
from align.learner.learner import Outputs
from align.learner.moves import credit_columns, with_columns
from align.losses.loss import Current
from align.ranks import exchange
from align.ranks.exchange import Parcel
from align.rollout.rollouts import Rollout, pack_tokens, unpack_tokens
from align.rollout.sources import Collected, SourceBatch
from align.run.samples import Choice


@dataclass(frozen=True)
class _Given:
    """What a rank gives of a source."""

    rollouts: tuple  # packed
    parcel: Parcel | None  # None where each rank has the batch
    outputs: list[Outputs]


def on_main(
    batches: Sequence[SourceBatch], outputs: Sequence[Outputs], chosen: Sequence[Choice]
) -> tuple[Sequence[SourceBatch], Sequence[Outputs]]:
    """(the batches with the chosen responses of all ranks, the outputs of all ranks for their rows) on the main
    process, nothing on the others; all that there is where there is one. Collective."""
    rank, count = exchange.place()
    if count == 1:
        return batches, outputs
    given = [_given(*one, outputs, number) for number, one in enumerate(zip(batches, chosen, strict=False))]
    found = exchange.swap([given if other == 0 else [] for other in range(count)])
    if rank:
        return [], []
    sources = [_merged(source, parts) for source, parts in zip(batches, zip(*found, strict=True), strict=False)]
    return [source for source, _ in sources], [one for _, outputs in sources for one in outputs]


def _given(source: SourceBatch, choice: Choice, outputs: Sequence[Outputs], number: int) -> _Given:
    collected, batch = source.collected, source.collected.batch
    own = [one for one in collected.rollouts if isinstance(one, Rollout) and one.group in choice.groups]
    wanted = set(choice.rows)
    said = [_only(one, wanted) for one in outputs if one.source == number]
    if batch.row is None:
        return _Given(pack_tokens(own), None, said)
    index = torch.tensor([i for i, row in enumerate(batch.row.tolist()) if row in wanted], dtype=torch.int64)
    columns = {f"batch {name}": value for name, value in exchange.columns_of(batch).items()}
    columns |= credit_columns(source.credited) | _traces(source.credited)
    return _Given(pack_tokens(own), exchange.pack(columns, batch, index), said)


def _only(outputs: Outputs, wanted: set[int]) -> Outputs:
    """The outputs for some rows."""
    places = [i for i, row in enumerate(outputs.rows) if row in wanted]
    named = {f.name: value for f in fields(Current) if (value := getattr(outputs.current, f.name)) is not None}
    current = Current(**{name: value[places] for name, value in named.items()})
    return Outputs(outputs.source, [outputs.rows[i] for i in places], current)


def _traces(credits: Sequence[Credited]) -> dict[str, Tensor]:
    out = {}
    for i, credited in enumerate(credits):
        trace = credited.trace
        out[f"{i} taken"] = trace.taken_by
        out |= {f"{i} after {place}": value for place, value in trace.advantages.items()}
        out |= {f"{i} known {name}": value for name, value in trace.known.items()}
    return out


def _merged(source: SourceBatch, given: Sequence[_Given]) -> tuple[SourceBatch, list[Outputs]]:
    """(a source's batch of the rows that all ranks gave, the outputs with their rows numbered as there)."""
    collected = source.collected
    rollouts = [one for part in given for one in unpack_tokens(*part.rollouts)]
    rollouts.sort(key=lambda one: (one.group, one.index))
    outputs = [one for part in given for one in part.outputs]
    if collected.batch.row is None:
        return replace(source, collected=replace(collected, rollouts=rollouts)), outputs
    found, lists = exchange.unpack([part.parcel for part in given], collected.batch.mask.shape[1])
    order = found["batch row"].argsort()
    found = {name: value[order] for name, value in found.items()}
    lists = {name: [values[i] for i in order.tolist()] for name, values in lists.items()}
    columns = {name: found[f"batch {name}"] for name in exchange.columns_of(collected.batch)}
    batch = replace(collected.batch, **columns, **lists)
    credits = [_credited(i, credited, found, lists) for i, credited in enumerate(source.credited)]
    place = {row: i for i, row in enumerate(batch.row.tolist())}
    outputs = [replace(one, rows=[place[row] for row in one.rows]) for one in outputs]
    return SourceBatch(Collected(batch, (), rollouts, collected.rewards, collected.pairs), credits), outputs


def _credited(i: int, credited: Credited, found: Mapping[str, Tensor], lists: Mapping[str, list]) -> Credited:
    trace = credited.trace
    trace = replace(
        trace,
        taken_by=found[f"{i} taken"],
        advantages={place: found[f"{i} after {place}"] for place in trace.advantages},
        known={name: found[f"{i} known {name}"] for name in trace.known},
    )
    return replace(with_columns(i, credited, found, lists), trace=trace)
