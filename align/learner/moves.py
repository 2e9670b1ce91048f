"""Rows on their way between the ranks that hold them and those that compute them, as a plan of micro-batches says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from accelerate.utils import gather_object
from torch import Tensor

from align.batch import Batch
from align.credit import Credited, Term
from align.learner.micro_batches import divide_rows
from align.model.layouts import Row, rows
from align.ranks import exchange


@dataclass(frozen=True)
class Route:
    """Which rows this rank computes, and what it gives to and gets from the others; no ways where each has all rows."""

    micros: list[list[int]]  # rows of each micro-batch of this rank, as numbers of those that came
    came: Sequence[int] = ()  # of each row that came: its number in the batch of all ranks
    given: Sequence[Tensor] = ()  # for each rank: rows of this rank's part that it computes
    got: Sequence[Tensor] = ()  # from each rank: places of its rows among those that came

    def numbers(self, micro: Sequence[int]) -> list[int]:
        """The rows of a micro-batch by their numbers in the batch of all ranks."""
        return [self.came[i] for i in micro] if self.got else list(micro)


def route(
    batch: Batch, wanted_BT: Tensor, rows_B: Tensor, coupled_B: Tensor, place: tuple[int, int], **limits
) -> Route:
    """Plan the rows marked of all ranks' parts, in the order of the whole batch; collective where the batch is a part.

    `place` is (number of this rank, number of ranks); `limits` as in `divide_rows`, without the ranks.
    """
    rank, count = place
    facts, marked, coupled = rows(batch, wanted_BT), rows_B.tolist(), coupled_B.tolist()
    if batch.row is None:
        return Route(divide_rows(facts, marked, coupled, ranks=count, **limits)[rank])
    numbers = batch.row.tolist()
    found = zip(numbers, facts, marked, coupled, strict=True)
    mine = [(n, r.group, r.prompt, r.response, *flags) for n, r, *flags in found]
    known = exchange.gathered(mine)
    owned = sorted((*row, owner) for owner, part in enumerate(known) for row in part)
    *columns, marked, coupled, owner = zip(*owned, strict=True)
    plan = divide_rows([*map(Row, *columns)], marked, coupled, ranks=count, **limits)
    local = {number: i for i, number in enumerate(numbers)}
    came = _flat(plan[rank])
    given = [[local[row] for row in _flat(part) if owner[row] == rank] for part in plan]
    got = [[i for i, row in enumerate(came) if owner[row] == other] for other in range(count)]
    return Route(_consecutive(plan[rank]), came, [*map(_index, given)], [*map(_index, got)])


def _flat(part: Sequence[Sequence[int]]) -> list[int]:
    return [row for micro in part for row in micro]


def _consecutive(part: Sequence[Sequence[int]]) -> list[list[int]]:
    """The micro-batches with their rows numbered as they come."""
    ends = list(accumulate(map(len, part), initial=0))
    return [[*range(start, end)] for start, end in pairwise(ends)]


def _index(rows: Sequence[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64)


def bring(way: Route, columns: Mapping[str, Tensor], batch: Batch) -> tuple[dict[str, Tensor], dict[str, list]]:
    """(columns, lists of the batch) of the rows that this rank computes, in the order of the plan. Collective."""
    parcels = exchange.swap([exchange.pack(columns, batch, index) for index in way.given])
    order = torch.cat(way.got).argsort()
    found, lists = exchange.unpack(parcels, batch.mask.shape[1])
    return (
        {name: value[order] for name, value in found.items()},
        {name: [values[i] for i in order.tolist()] for name, values in lists.items()},
    )


def bring_batch(way: Route, batch: Batch) -> Batch:
    """The rows of a batch that this rank computes. Collective where the batch is a part."""
    if batch.row is None:
        return batch
    columns, lists = bring(way, exchange.columns_of(batch), batch)
    return replace(batch, **columns, **lists)


def take_back(
    way: Route,
    found: Sequence[tuple[list[int], Mapping[str, Tensor]]],
    quantities: Sequence[str],
    here: Batch,
    batch: Batch,
) -> dict[str, Tensor]:
    """{quantity: [B,T]} of a batch from [(rows that this rank computed, values of them)], 0 where nobody computed it.

    Collective.
    """
    if batch.row is None:
        parts = gather_object(list(found))
        return _placed(parts, quantities, batch)
    mine = _placed(found, quantities, here)
    parcels = exchange.swap([exchange.pack(mine, here, index, ()) for index in way.got])
    values, _ = exchange.unpack(parcels, batch.mask.shape[1])
    return _placed([(torch.cat(way.given), values)], quantities, batch)


def _placed(parts: Sequence[tuple], quantities: Sequence[str], batch: Batch) -> dict[str, Tensor]:
    out = {name: torch.zeros(batch.mask.shape) for name in quantities}
    for index, values in parts:
        for name in quantities:
            out[name][index] = values[name]
    return out


def bring_credited(way: Route, credits: Sequence[Credited]) -> Sequence[Credited]:
    """The rows of credited batches that this rank computes, with their weights. Collective where they are parts."""
    if credits[0].batch.row is None:
        return credits
    found, lists = bring(way, credit_columns(credits), credits[0].batch)
    return [with_columns(i, credited, found, lists) for i, credited in enumerate(credits)]


def credit_columns(credits: Sequence[Credited]) -> dict[str, Tensor]:
    """{name: column} of credited batches of one source, and of the weights of their losses."""
    out: dict[str, Tensor] = {}
    for i, credited in enumerate(credits):
        out |= {f"{i} {name}": value for name, value in exchange.columns_of(credited.batch).items()}
        for j, term in enumerate(credited.terms):
            out |= {f"{i} {j} weight": term.token_weights.weight, f"{i} {j} trained": term.token_weights.trained}
    return out


def with_columns(i: int, credited: Credited, found: Mapping[str, Tensor], lists: Mapping[str, list]) -> Credited:
    """The `i`th of credited batches with other rows, of which these are the `credit_columns`."""
    columns = {name: found[f"{i} {name}"] for name in exchange.columns_of(credited.batch)}
    terms = []
    for j, term in enumerate(credited.terms):
        weights = replace(term.token_weights, weight=found[f"{i} {j} weight"], trained=found[f"{i} {j} trained"])
        terms.append(Term(term.loss, weights, term.weight))
    return replace(credited, batch=replace(credited.batch, **columns, **lists), terms=tuple(terms))
