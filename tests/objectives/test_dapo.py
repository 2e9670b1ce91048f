"""DAPO: truncated rows."""

from dataclasses import replace

import torch
from support import oracle
from support.batches import batch_of, no_model

from align import objectives
from align.credit import assign


def test_truncated_rows_are_masked_but_stay_in_the_statistics():
    batch = batch_of([0] * 4, [2] * 4, rewards=[1.0, 0, 0, 1])
    batch = replace(batch, truncated=torch.tensor([1, 0, 0, 0]).bool(), old_logprob=torch.zeros_like(batch.weight))
    credited = assign(objectives.dapo(), batch, no_model)
    assert credited.batch.advantage[:, 0].tolist() == [1, -1, -1, 1]
    assert not credited.terms[0].token_weights.weight[0].any() and credited.terms[0].token_weights.count == 6
    assert oracle.group_norm([1.0, 0, 0, 1]) == [1, -1, -1, 1]
