"""Golden values A1 of the specification: two sequences of three and two tokens."""

import torch

from align.objectives import Objective, grpo
from support.batches import batch_of, loss_of

OLD = [[-1, -0.5, -2], [-0.7, -1.2]]
NEW = torch.tensor([[-0.7, -0.6, -2.5], [-0.4, -1, 0]], dtype=torch.float64)
REF = [[-0.9, -0.6, -2.2], [-0.6, -1.1]]


def a1(loss, extra=()):
    """The loss of A1's two rows, whose advantages are 1 and -1."""
    batch = batch_of([0, 0], [3, 2], rewards=[1.0, -1.0], old_logprob=OLD, ref_logprob=REF)
    return float(loss_of(Objective("a1", grpo().chain, (loss, *extra)), batch, NEW)[0])
