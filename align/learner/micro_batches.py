"""Divide rows over ranks and micro-batches. Every rank computes the same plan from what is known of all rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

from torch import Tensor

from align.batch import Batch
from align.model.layouts import Layout, Load, Row, rows

UNTRACKED = 4  # times the tokens of a micro-batch where no gradient is wanted: layers keep nothing then

Plan = list[list[list[int]]]  # [rank][micro-batch] -> rows; all ranks have the same number of micro-batches

Block = list[Row]  # rows that stay in one micro-batch

Cost = Callable[[Load], float]


def divide(batch: Batch, wanted_BT: Tensor, rows_B: Tensor, coupled_B: Tensor, **limits) -> Plan:
    """Divide the rows marked in `rows_B` of a batch that every rank has, those of `coupled_B` as pairs; `limits` as in
    `divide_rows`."""
    return divide_rows(rows(batch, wanted_BT), rows_B.tolist(), coupled_B.tolist(), **limits)


def divide_rows(
    everything: Sequence[Row],
    marked: Sequence[bool],
    coupled: Sequence[bool],
    *,
    ranks: int,
    tokens: int,
    layout: Layout,
    quadratic: float,
) -> Plan:
    """Spread the rows marked, of all rows of a batch in their order, over ranks and cut them into micro-batches of at
    most `tokens`, as even as their order allows.

    The cost of a micro-batch is the tokens that the layout computes for those wanted, and `quadratic` for each pair of
    tokens of which one attends to the other: the cost of that pair as a fraction of a token's other work. Rows of a
    group stay neighbours, so that they can share their prompt; those of a group that are `coupled` (pairs)
    stay in one micro-batch. A block that costs more than `tokens` gets a micro-batch of its own. Where a rank has fewer
    blocks than another has micro-batches, some are empty: under ZeRO-3 every forward pass is collective.
    """

    def cost(load: Load) -> float:
        return load.positions + quadratic * load.attended

    blocks = _blocks(everything, marked, coupled)
    whole = cost(reduce(layout.add, (row for block in blocks for row in block), Load()))
    rank_blocks = _split(blocks, ranks, whole, layout, cost)
    most = max(len(_fill(mine, tokens, layout, cost)) for mine in rank_blocks)
    return [
        [[row.index for block in part for row in block] for part in _split(mine, most, tokens, layout, cost)]
        for mine in rank_blocks
    ]


def _blocks(everything: Sequence[Row], marked: Sequence[bool], coupled: Sequence[bool]) -> list[Block]:
    """Rows by group: the coupled ones of a group are one block, each other row is one of its own."""
    blocks: dict[tuple[int, int], Block] = {}
    for row in sorted(everything, key=lambda row: row.group):
        if marked[row.index]:
            blocks.setdefault((row.group, -1 if coupled[row.index] else row.index), []).append(row)
    return list(blocks.values())


def _fill(blocks: list[Block], limit: float, layout: Layout, cost: Cost) -> list[list[Block]]:
    """Blocks in their order, in the fewest parts that stay within the limit."""
    parts: list[list[Block]] = []
    load = Load()
    for block in blocks:
        more = reduce(layout.add, block, load)
        if parts and cost(more) <= limit:
            parts[-1].append(block)
            load = more
        else:
            parts.append([block])
            load = reduce(layout.add, block, Load())
    return parts


def _split(blocks: list[Block], count: int, limit: float, layout: Layout, cost: Cost) -> list[list[Block]]:
    """Blocks in their order in `count` parts, the costliest of which costs as little as it can, to one part in a
    thousand; `limit` is a cost at which they fit."""
    if len(blocks) <= count:
        return [[block] for block in blocks] + [[]] * (count - len(blocks))
    low, high = 0.0, limit
    while high - low > high / 1000:
        middle = (low + high) / 2
        fits = len(_fill(blocks, middle, layout, cost)) <= count
        low, high = (low, middle) if fits else (middle, high)
    parts = _fill(blocks, high, layout, cost)
    return parts + [[]] * (count - len(parts))
