"""Pairs from rollouts: every preference objective runs online on them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from align import ops
from align.batch import Batch
from align.ranges import LengthGap, Margin
from align.transforms.transform import Stage, Transform


def best_and_worst(*, margin: Margin = 0.0, max_length_gap: LengthGap = math.inf) -> Transform:
    """Keep the two responses of each group whose rewards are furthest apart; the better one is `chosen`.

    Their rewards differ by more than `margin`, so a group of equal rewards gives no pair, nor does one of rewards that
    are the same up to rounding; their lengths differ by at most `max_length_gap` tokens. Ties by row order, of the
    better one first.
    """

    def apply(batch: Batch) -> Batch:
        reward = batch.need("reward", "best_and_worst")
        kept, chosen = torch.zeros_like(batch.kept), torch.zeros_like(batch.kept)
        for group in batch.group.unique():
            rows = (batch.kept & (batch.group == group)).nonzero()[:, 0]
            one, other = reward[rows][:, None], reward[rows][None]
            gap, same = one - other, ops.same_up_to_rounding(torch.minimum(one, other), torch.maximum(one, other))
            far = (batch.length[rows][:, None] - batch.length[rows][None]).abs() > max_length_gap
            gap = torch.where((gap > margin) & ~same & ~far, gap, -torch.inf)
            if len(rows) and gap.max() > -torch.inf:
                best, worst = divmod(int(gap.flatten().argmax()), len(rows))
                kept[rows[[best, worst]]] = True
                chosen[rows[best]] = True
        return replace(batch, kept=kept, chosen=chosen)

    return Transform(
        "best_and_worst", apply, needs=("reward",), gives=("chosen",), stage=Stage.PAIRS, scope="group", compares=True
    )
