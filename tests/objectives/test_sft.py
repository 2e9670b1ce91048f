"""SFT: rows with a chosen response alone."""

from dataclasses import replace

import torch
from support.batches import batch_of, result_of
from support.compare import exactly, matrix

from align.objectives import sft


def test_the_likelihood_of_chosen_responses_needs_no_rejected_ones():
    batch = replace(batch_of([0, 1, 2, 2], [1, 2, 1, 1]), chosen=torch.tensor([True, True, False, True]))
    logprob = matrix([-1, 9], [-2, -4], [-8, 9], [-3, 9])
    for form, expected in (("sum", 10 / 3), ("mean", 7 / 3)):
        loss, gradients, metrics = result_of(sft(form=form), batch, logprob=logprob)
        assert float(loss) == exactly(expected) and metrics["nll"] == exactly(10 / 4)
        assert gradients["logprob"].nonzero()[:, 0].tolist() == [0, 1, 1, 3]
