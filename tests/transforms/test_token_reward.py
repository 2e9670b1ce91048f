"""Token rewards and their advantages (GAE)."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import oracle
from support.batches import batch_of
from support.draws import few, seeds
from support.token_rewards import drawn, token_lists

from align.transforms import gae, token_reward


@few
@given(seed=seeds, gamma=st.sampled_from([0.0, 0.9, 1.0]), lam=st.sampled_from([0.0, 0.95, 1.0]))
def test_advantages_and_returns_are_the_oracle_s(seed, gamma, lam):
    batch, logprob, _ = drawn(seed)
    batch = replace(batch, token_reward=logprob, kept=batch.group != 1)
    found = gae(gamma=gamma, lam=lam, whitening="none").apply(batch)
    for i, (rewards, values) in enumerate(token_lists(batch, "token_reward", "value")):
        n = len(rewards)
        if batch.kept[i]:
            advantages, returns = oracle.gae(rewards, values, gamma, lam)
            assert found.advantage[i, :n].tolist() == pytest.approx(advantages, abs=1e-12)
            assert found.returns[i, :n].tolist() == pytest.approx(returns, abs=1e-12)
        else:
            assert not found.advantage[i].any()
    assert not found.advantage[~batch.mask].any()


@pytest.mark.parametrize("truncated", [False, True])
def test_the_outcome_is_paid_at_the_last_token_alone(truncated):
    """Of a response that was cut, too; an empty response has none to pay at."""
    batch = batch_of([0] * 4, [3, 1, 0, 2], rewards=[1.0, -20.0, 5.0, 0.5])
    zeros = torch.zeros_like(batch.weight)
    batch = replace(batch, old_logprob=zeros, ref_logprob=zeros, truncated=torch.full((4,), truncated))
    found = token_reward(reward_coef=2, reward_clip=3).apply(batch).token_reward
    assert found.tolist() == [[0, 0, 2], [-6, 0, 0], [0, 0, 0], [0, 1, 0]]
