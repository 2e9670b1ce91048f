"""The objectives around GRPO for the invariants that all of them must keep, a composed one among them."""

from dataclasses import replace

import torch

from align import objectives
from align.losses import clipped_surrogate, kl_policy_ref
from align.objectives import Objective
from align.objectives.d3s import GroupThenBatch, max_variance_rows, top_tokens
from align.objectives.gfpo import keep_top
from align.objectives.ktae import key_tokens
from align.transforms import group_advantage, mask_truncated
from support.batches import random_batch


def composed():
    """GFPO x KTAE x D3S x DAPO in one chain."""
    return Objective(
        "composed",
        chain=(
            keep_top(k=3),
            group_advantage(),
            max_variance_rows(rows=2),
            key_tokens(weight=0.5),
            mask_truncated(),
            top_tokens(share=0.6),
        ),
        losses=(clipped_surrogate(clip_high=0.28, denominator="selected"),),
    )


def gspo_of_tokens():
    """D3S on GSPO: the ratio is of the whole response, the loss of the chosen tokens."""
    base = objectives.gspo(form="token", denominator="selected")
    return replace(base, chain=(*base.chain, max_variance_rows(rows=2), top_tokens(share=0.4)))


def kl_to_old():
    """GRPO with GFPO's KL as it is printed, on every response."""
    base = objectives.grpo()
    return replace(base, losses=(*base.losses, kl_policy_ref(coef=0.1, rows="all", to="old_policy")))


FAMILY = {
    "ktae": objectives.ktae,
    "d3s": lambda: objectives.d3s(rows=2, share=0.5),
    "d3s_group_response": lambda: objectives.d3s(rows=2, share=0.5, row_scope="group", token_scope="response"),
    "d3s_two_stages": lambda: objectives.d3s(
        rows=3, share=0.5, row_scope=GroupThenBatch(group_then_batch=2), dual_clip=1.5
    ),
    "gfpo_own_metric": lambda: objectives.gfpo(k=2, metric=lambda batch: batch.reward.abs(), dual_clip=2.0),
    "kl_to_old": lambda: kl_to_old(),
    "dapo": lambda: objectives.dapo(dual_clip=1.2),
    "dr_grpo": lambda: objectives.dr_grpo(tokens_per_row=6),
    "gspo": objectives.gspo,
    "gspo_token": lambda: objectives.gspo(form="token"),
    "gspo_d3s": lambda: gspo_of_tokens(),
    "cispo": objectives.cispo,
    "rloo": objectives.rloo,
    "reinforce": objectives.reinforce,
    "nsr": objectives.nsr,
    "psr": objectives.psr,
    "w_reinforce": objectives.w_reinforce,
    "grpo_n": objectives.grpo_n,
    "grpo_n_selected": lambda: objectives.grpo_n(denominator="selected"),
    "composed": composed,
}


def family_batch(seed):
    """Rewards without ties, so that the order of rows decides nothing."""
    batch, logprob = random_batch(seed)
    generator = torch.Generator().manual_seed(seed)
    reward = torch.rand(12, generator=generator, dtype=torch.float64)
    lengths_differ = torch.arange(12) * 1e-3  # nor does a tie in length
    return (
        replace(
            batch,
            reward=reward + lengths_differ,
            correct=reward > 0.5,
            truncated=torch.rand(12, generator=generator) > 0.8,
            entropy=torch.rand(batch.mask.shape, generator=generator, dtype=torch.float64),
            response_ids=torch.randint(3, 9, batch.mask.shape, generator=generator),
        ),
        logprob,
    )
