"""Dividing rows over ranks and micro-batches. Every rank computes the same plan from the whole batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from align.batch import Batch

Plan = list[list[list[int]]]  # [rank][micro-batch] -> rows; all ranks have the same number of micro-batches


def divide(batch: Batch, rows_B: Tensor, ranks: int, tokens: int, positions: Callable[[Batch, list[int]], int]) -> Plan:
    """Rows marked in `rows_B`, spread evenly by response tokens and cut into micro-batches of at most `tokens`
    positions, as the layout counts them.

    Rows of a group stay neighbours, so that they can share their prompt. A row longer than `tokens` gets a
    micro-batch of its own. Where a rank has fewer micro-batches than another it gets empty ones: under
    ZeRO-3 every forward pass is collective.
    """
    rows = [i for i in batch.group.argsort(stable=True).tolist() if rows_B[i]]
    length = [int(batch.mask[i].sum()) + 1 for i in rows]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    spent = 0
    for row, cost in zip(rows, length, strict=True):
        shares[spent * ranks // sum(length)].append(row)
        spent += cost
    plan = [_pack(batch, share, tokens, positions) for share in shares]
    most = max(map(len, plan))
    return [micro + [[]] * (most - len(micro)) for micro in plan]


def _pack(batch: Batch, rows: list[int], tokens: int, positions: Callable[[Batch, list[int]], int]) -> list[list[int]]:
    micro: list[list[int]] = []
    for row in rows:
        if micro and positions(batch, [*micro[-1], row]) <= tokens:
            micro[-1].append(row)
        else:
            micro.append([row])
    return micro
