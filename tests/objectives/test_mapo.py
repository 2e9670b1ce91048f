"""MaPO: SparsePO's loss with the masks of the batch."""

from dataclasses import replace

import torch
from support.batches import random_pairs, result_of
from support.compare import exactly
from support.pair_goldens import MASKS, on_b

from align.objectives import mapo, sparsepo


def test_mapo_reads_the_masks_of_the_batch_and_has_no_head():
    """Its golden is SparsePO's, whose masks come from the policy's side."""
    loss, gradients, metrics = on_b(mapo(beta=0.8), batch_masks=True, **MASKS)
    assert float(loss) == exactly(0.4291706640) and metrics["logit"] == exactly(0.6236525567)
    assert gradients["logprob"].any() and gradients["ref_kl"].any()
    assert not mapo().losses[0].heads and sparsepo().losses[0].heads


def test_mapo_s_dead_masks_are_seen_too():
    batch, current = random_pairs(4)
    nothing = dict.fromkeys(MASKS, torch.zeros_like(batch.weight))
    metrics = result_of(mapo(), replace(batch, **nothing), logprob=current["logprob"], ref_kl=current["ref_kl"])[2]
    assert metrics["mask_dead"] == 1
