"""PPO: the limit where it is REINFORCE."""

from dataclasses import replace

import torch
from hypothesis import given
from support.batches import no_model
from support.draws import few, seeds
from support.token_rewards import close, drawn, rewarded

from align.credit import assign
from align.objectives import ppo


@few
@given(seed=seeds)
def test_with_gamma_and_lambda_1_and_no_value_it_is_reinforce(seed):
    """Reward-to-go of every token, the KL among them."""
    batch, _, _ = drawn(seed)
    batch = replace(batch, value=torch.zeros_like(batch.value))
    objective = ppo(lam=1, whitening="none", kl_coef=0.2)
    credited, rewards = assign(objective, batch, no_model).batch, rewarded(objective, batch)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    close(credited.advantage, torch.where(batch.mask, to_go, 0.0))
    close(torch.where(batch.mask, credited.returns, 0.0), credited.advantage)
