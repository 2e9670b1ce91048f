"""Dividing rows over ranks and micro-batches. Every rank computes the same plan from the whole batch."""

from __future__ import annotations

from torch import Tensor

from align.batch import Batch

Plan = list[list[list[int]]]  # [rank][micro-batch] -> rows; all ranks have the same number of micro-batches


def divide(batch: Batch, rows_B: Tensor, ranks: int, tokens: int) -> Plan:
    """Rows marked in `rows_B`, spread evenly by tokens and cut into micro-batches of at most `tokens` tokens.

    Rows of a group stay neighbours, so that they can share their prompt. A row longer than `tokens` gets a
    micro-batch of its own. Where a rank has fewer micro-batches than another it gets empty ones: under
    ZeRO-3 every forward pass is collective.
    """
    rows = [i for i in batch.group.argsort(stable=True).tolist() if rows_B[i]]
    total = sum(_cost(batch, row, rows[i - 1 : i]) for i, row in enumerate(rows))
    shares: list[list[int]] = [[] for _ in range(ranks)]
    spent = 0
    for i, row in enumerate(rows):
        shares[min(ranks - 1, spent * ranks // total)].append(row)
        spent += _cost(batch, row, rows[i - 1 : i])
    plan = [_pack(batch, share, tokens) for share in shares]
    most = max(map(len, plan))
    return [micro + [[]] * (most - len(micro)) for micro in plan]


def _cost(batch: Batch, row: int, before: list[int]) -> int:
    """Tokens that a row adds behind the row before it: its response, and its prompt unless they share it."""
    shared = bool(before) and batch.group[before[-1]] == batch.group[row]
    return int(batch.mask[row].sum()) + (0 if shared else len(batch.prompt_ids[row]))


def _pack(batch: Batch, rows: list[int], tokens: int) -> list[list[int]]:
    micro: list[list[int]] = []
    filled = tokens
    for row in rows:
        cost = _cost(batch, row, micro[-1] if micro else [])
        if filled + cost > tokens:
            micro.append([])
            filled, cost = 0, _cost(batch, row, [])
        micro[-1].append(row)
        filled += cost
    return micro
