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

from align.batch import Batch
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


def test_a_turn_s_end_bootstraps_from_the_next_turn_s_first_token():
    """What a tool said between them has no value, no reward and no discount."""
    batch = Batch.of([0], [[5] * 6], dtype=torch.float64, turns=[[0, 0, -1, -1, 1, -1]])
    reward, value = [[0, 1, 9, 9, 2, 9]], [[0.5, 0.25, 9, 9, 0.125, 9]]
    batch = replace(batch, token_reward=torch.tensor(reward).double(), value=torch.tensor(value).double())
    found = gae(gamma=0.5, lam=0.5, whitening="none").apply(batch)
    advantages, returns = oracle.gae([0, 1, 2], [0.5, 0.25, 0.125], 0.5, 0.5)
    own = batch.mask[0]
    assert found.advantage[0, own].tolist() == pytest.approx(advantages) and not found.advantage[0, ~own].any()
    assert found.returns[0, own].tolist() == pytest.approx(returns)
    same = dict.fromkeys(("old_logprob", "ref_logprob"), torch.zeros_like(batch.weight))
    paid = token_reward(kl_coef=0).apply(replace(batch, reward=torch.ones(1).double(), **same))
    assert paid.token_reward.tolist() == [[0, 0, 0, 0, 1, 0]]  # not on what was put in behind it


@pytest.mark.parametrize("truncated", [False, True])
def test_the_outcome_is_paid_at_the_last_token_alone(truncated):
    """Of a response that was cut, too; an empty response has none to pay at."""
    batch = batch_of([0] * 4, [3, 1, 0, 2], rewards=[1.0, -20.0, 5.0, 0.5])
    zeros = torch.zeros_like(batch.weight)
    batch = replace(batch, old_logprob=zeros, ref_logprob=zeros, truncated=torch.full((4,), truncated))
    found = token_reward(reward_coef=2, reward_clip=3).apply(batch).token_reward
    assert found.tolist() == [[0, 0, 2], [-6, 0, 0], [0, 0, 0], [0, 1, 0]]
