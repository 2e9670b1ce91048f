"""Dividing rows over ranks and micro-batches. Every rank computes the same plan from the whole batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from align.batch import Batch

Plan = list[list[list[int]]]  # [rank][micro-batch] -> rows; all ranks have the same number of micro-batches


def divide(
    batch: Batch,
    rows_B: Tensor,
    ranks: int,
    tokens: int,
    positions: Callable[[Batch, list[int]], int],
    coupled_B: Tensor,
) -> Plan:
    """Rows marked in `rows_B`, spread evenly by response tokens and cut into micro-batches of at most `tokens`
    positions, as the layout counts them.

    Rows of a group stay neighbours, so that they can share their prompt; those of a group that are marked in
    `coupled_B` (pairs) stay in one micro-batch. What is longer than `tokens` gets a micro-batch of its own. Where
    a rank has fewer micro-batches than another it gets empty ones: under ZeRO-3 every forward pass is collective.
    """
    blocks = _blocks(batch, rows_B, coupled_B)
    costs = [sum(int(batch.mask[i].sum()) + 1 for i in block) for block in blocks]
    shares: list[list[list[int]]] = [[] for _ in range(ranks)]
    spent = 0
    for block, cost in zip(blocks, costs, strict=True):
        shares[spent * ranks // sum(costs)].append(block)
        spent += cost
    plan = [_pack(batch, share, tokens, positions) for share in shares]
    most = max(map(len, plan))
    return [micro + [[]] * (most - len(micro)) for micro in plan]


def _blocks(batch: Batch, rows_B: Tensor, coupled_B: Tensor) -> list[list[int]]:
    """Rows by group, each a block of its own but for those that are coupled."""
    blocks: dict[tuple[int, int], list[int]] = {}
    for i in batch.group.argsort(stable=True).tolist():
        if rows_B[i]:
            coupled = bool(coupled_B[i])
            blocks.setdefault((int(batch.group[i]), -1 if coupled else i), []).append(i)
    return list(blocks.values())


def _pack(
    batch: Batch, blocks: list[list[int]], tokens: int, positions: Callable[[Batch, list[int]], int]
) -> list[list[int]]:
    micro: list[list[int]] = []
    for block in blocks:
        if micro and positions(batch, [*micro[-1], *block]) <= tokens:
            micro[-1] += block
        else:
            micro.append([*block])
    return micro
