"""A step's worth of ragged rollouts for the tests of the update, the same in every process."""

from dataclasses import replace

import torch

from align.batch import Batch
from align.credit import Credited, assign
from align.loop import Clock, Passes
from align.losses import kl_policy_ref
from align.objectives import gfpo

VOCABULARY = 90


def batch() -> Batch:
    """3 groups of 4, prompts of 3 to 17 tokens, responses of 1 to 40, one of them empty."""
    generator = torch.Generator().manual_seed(7)

    def ids(n):
        return torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()

    prompts = [ids(n) for n in (3, 17, 9)]
    lengths = [12, 1, 40, 7, 5, 5, 23, 0, 2, 31, 16, 9]
    responses = [ids(n) for n in lengths]
    rewards = torch.rand(12, generator=generator)
    whole = Batch.of(
        [i // 4 for i in range(12)], responses, prompt_ids=[prompts[i // 4] for i in range(12)], reward=rewards
    )
    # off-policy on purpose: some tokens are clipped
    return replace(whole, sampler_logprob=-4.0 - torch.rand(whole.mask.shape, generator=generator))


def objective():
    """GFPO with a KL term over all rows, dropped ones included."""
    base = gfpo(k=3, aggregation="seq-mean-token-mean")
    return replace(base, losses=(*base.losses, kl_policy_ref(coef=0.1, rows="all")))


def credits(learner) -> list[Credited]:
    return [assign(objective(), batch(), Passes(learner, "sampler", Clock()))]
