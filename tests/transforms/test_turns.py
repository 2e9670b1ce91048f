"""Credit of turns: against naive loops, against GiGPO's numbers by hand, and the limits bit for bit."""

from dataclasses import replace
from statistics import mean, pstdev, stdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.batches import no_model
from support.draws import few, seeds

from align.batch import Batch
from align.credit import assign
from align.data.turns import turn_columns
from align.losses import clipped_surrogate
from align.objectives import Objective, grpo
from align.objectives.d3s import top_tokens
from align.objectives.gfpo import keep_top
from align.objectives.ktae import key_tokens
from align.transforms import anchor_advantage, group_advantage, turn_returns

STD = {"population": pstdev, "sample": lambda v: stdev(v) if len(v) > 1 else 0.0, "none": lambda v: 1.0}


def episodes(seed, groups=3, size=4, most=3, dtype=torch.float64):
    """(batch, [the rewards of an episode's turns], [their states]): what others put in stands between turns."""
    draw = torch.Generator().manual_seed(seed)

    def whole(n, low=0):
        return int(torch.randint(low, n, (1,), generator=draw))

    numbers, rewards, states = [], [], []
    for _ in range(groups * size):
        turns = whole(most + 1, 1)
        numbers.append([n for k in range(turns) for n in [k] * whole(4, 1) + [-1] * whole(3)])
        rewards.append([whole(4) / 2 for _ in range(turns)])
        states.append([whole(3) for _ in range(turns)])
    ids = [[7] * len(row) for row in numbers]
    batch = Batch.of([i // size for i in range(groups * size)], ids, dtype=dtype, turns=numbers)
    reward, state = torch.zeros_like(batch.weight), torch.zeros_like(batch.turn)
    for i, row in enumerate(numbers):
        for k in range(max(row) + 1):
            reward[i, max(t for t, n in enumerate(row) if n == k)] = rewards[i][k] if k < max(row) else 0.0
            state[i, row.index(k)] = states[i][k]
    total = torch.tensor([sum(row) for row in rewards], dtype=dtype)
    some = -torch.rand(batch.mask.shape, generator=draw, dtype=dtype)
    rest = {"sampler_logprob": some, "old_logprob": some, "correct": total > 1, "entropy": -some}
    return replace(batch, reward=total, turn_reward=reward, turn_state=state, **rest), rewards, states


def returns_of(rewards, discount):
    return [sum(discount**j * r for j, r in enumerate(rewards[k:])) for k in range(len(rewards))]


def normal(value, among, std, eps):
    scale = STD[std](among)
    return 0.0 if max(among) == min(among) else (value - mean(among)) / (scale + (eps if std != "none" else 0.0))


def of_tokens(batch, by_turn):
    rows = zip(batch.turn.tolist(), batch.mask.tolist(), by_turn, strict=True)
    return [[of[n] if own else 0.0 for n, own in zip(turn, mask, strict=True)] for turn, mask, of in rows]


@few
@given(
    seed=seeds,
    discount=st.sampled_from([0.0, 0.9, 1.0]),
    scope=st.sampled_from(["turn", "group"]),
    std=st.sampled_from(list(STD)),
)
def test_turn_returns_are_the_naive_loop_s(seed, discount, scope, std):
    batch, rewards, _ = episodes(seed)
    dropped = {1, 6}
    batch = replace(batch, kept=torch.tensor([i not in dropped for i in range(12)]))
    returns = [returns_of(row, discount) for row in rewards]
    expected = []
    for i, row in enumerate(returns):
        peers = [returns[j] for j in range(12) if j // 4 == i // 4 and j not in dropped]
        among = [[v for of in peers for n, v in enumerate(of) if scope == "group" or n == k] for k in range(len(row))]
        expected.append([0.0 if i in dropped else normal(v, a, std, 1e-6) for v, a in zip(row, among, strict=True)])
    found = turn_returns(discount=discount, scope=scope, std=std, eps=1e-6).apply(batch).advantage
    assert found.tolist() == [pytest.approx(row, abs=1e-9) for row in of_tokens(batch, expected)]


@few
@given(
    seed=seeds, discount=st.sampled_from([0.5, 0.95]), std=st.sampled_from(list(STD)), weight=st.sampled_from([0.5, 2])
)
def test_anchors_are_the_naive_loop_s(seed, discount, std, weight):
    batch, rewards, states = episodes(seed)
    base = grpo().chain[0].apply(batch)
    returns = [returns_of(row, discount) for row in rewards]
    steps = [(i // 4, states[i][k], value) for i, row in enumerate(returns) for k, value in enumerate(row)]
    expected = [
        [
            normal(v, [other for *key, other in steps if key == [i // 4, states[i][k]]], std, 1e-6)
            for k, v in enumerate(row)
        ]
        for i, row in enumerate(returns)
    ]
    found = anchor_advantage(weight=weight, discount=discount, std=std, eps=1e-6).apply(base)
    added = (found.advantage - base.advantage) / weight
    assert added.tolist() == [pytest.approx(row, abs=1e-9) for row in of_tokens(batch, expected)]


def test_gigpo_by_hand():
    """Two episodes begin alike; the second one comes back to that state. Rewards at the end, discount 0.5."""
    numbers = [[0, -1, 1], [0, -1, 1]]
    batch = Batch.of([0, 0], [[7, 7, 7]] * 2, dtype=torch.float64, turns=numbers)
    state = torch.tensor([[1, 0, 2], [1, 0, 1]])
    zeros = torch.zeros_like(batch.weight)
    batch = replace(batch, reward=torch.tensor([4.0, 1.0]).double(), turn_reward=zeros, turn_state=state)
    base = group_advantage(std="none").apply(batch)
    assert base.advantage.tolist() == [[1.5, 0, 1.5], [-1.5, 0, -1.5]]
    # returns 2, 4 | 0.5, 1; state 1 has 2, 0.5 and 1, whose mean is 7/6; state 2 has one turn, which adds nothing
    found = anchor_advantage(discount=0.5).apply(base).advantage - base.advantage
    assert found.tolist() == [
        pytest.approx([2 - 7 / 6, 0, 0]),
        pytest.approx([0.5 - 7 / 6, 0, 1 - 7 / 6]),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scope", ["turn", "group"])
@pytest.mark.parametrize("std", list(STD))
@few
@given(seed=seeds)
def test_one_turn_is_group_advantage_to_the_last_bit(dtype, scope, std, seed):
    batch, *_ = episodes(seed, most=1, dtype=dtype)
    batch = replace(batch, reward=torch.rand(12, dtype=dtype), turn_reward=torch.rand(batch.mask.shape, dtype=dtype))
    expected = group_advantage(std=std, eps=1e-6).apply(batch).advantage
    found = turn_returns(scope=scope, std=std, eps=1e-6, discount=0.3).apply(batch).advantage
    assert found.dtype == dtype and torch.equal(found, expected)


@few
@given(seed=seeds)
def test_weight_0_is_the_base_to_the_last_bit(seed):
    batch, *_ = episodes(seed, dtype=torch.float32)
    base = group_advantage().apply(batch)
    assert torch.equal(anchor_advantage(weight=0.0).apply(base).advantage, base.advantage)


@few
@given(seed=seeds)
def test_they_compose_with_what_chooses_rows_and_tokens(seed):
    """GFPO's length is that of chosen tokens, KTAE counts them, D3S takes some of them: never one of the others."""
    batch, *_ = episodes(seed)
    chain = (keep_top(k=3), turn_returns(), anchor_advantage(), key_tokens(weight=0.5), top_tokens(share=0.5))
    credited = assign(Objective("all", chain, (clipped_surrogate(),)), batch, no_model)
    assert not credited.batch.advantage[~batch.mask].any() and not credited.trained[~batch.mask].any()
    assert credited.signal.environment == int((batch.present & ~batch.mask).sum())
    assert credited.signal.generated == int(batch.mask.sum())
    longest = (batch.length.view(3, 4).argmax(1) + torch.arange(3) * 4).tolist()
    assert not credited.batch.kept[longest].all()


def test_states_are_what_the_policy_saw_before():
    ids = [[5, 9, 6], [5, 9, 7], [5, 8, 6]]
    numbers = [[0, -1, 1]] * 3
    states = turn_columns(ids, numbers, [(), (), ()])["turn_state"]
    assert len(set(states[:, 0].tolist())) == 1 and states[0, 2] == states[1, 2] != states[2, 2]
    assert states[0, 0] != states[0, 2] and not states[:, 1].any()


@pytest.mark.parametrize("transform", [turn_returns(), anchor_advantage()])
def test_a_batch_without_rows_has_nothing_to_compare(transform):
    batch, *_ = episodes(0)
    nothing = replace(group_advantage().apply(batch)).rows(torch.tensor([], dtype=torch.int64))
    assert transform.apply(nothing).advantage.shape == (0, batch.mask.shape[1])
    narrow = Batch.of([], [], reward=torch.zeros(0), turn_reward=torch.zeros(0, 1), advantage=torch.zeros(0, 1))
    empty = replace(narrow, turn_state=torch.zeros(0, 1, dtype=torch.int64))
    assert transform.apply(empty).advantage.shape == (0, 1)
