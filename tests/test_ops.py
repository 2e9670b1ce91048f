"""The maths that several transforms and losses share."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import oracle

from align import ops

DDOF = {"population": 0, "sample": 1, "none": None}


@given(st.data())
def test_group_norm_is_the_oracle_on_interleaved_groups(data):
    groups = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=12))
    rewards = data.draw(st.lists(st.sampled_from([-1.0, 0.0, 0.3, 1.0]), min_size=len(groups), max_size=len(groups)))
    std = data.draw(st.sampled_from(sorted(DDOF)))
    eps = data.draw(st.sampled_from([0.0, 1e-6]))
    got = ops.group_norm(torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups), std, eps).tolist()
    for group in set(groups):
        rows = [i for i, g in enumerate(groups) if g == group]
        expected = oracle.group_norm([rewards[i] for i in rows], DDOF[std], eps)
        assert [got[i] for i in rows] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("std", sorted(DDOF))
@pytest.mark.parametrize("rewards", [[0.7] * 7, [0.1] * 3, [1 / 3] * 11, [5.0]])
def test_a_constant_group_is_exactly_zero_in_float32(std, rewards):
    advantage = ops.group_norm(torch.tensor(rewards), torch.zeros(len(rewards), dtype=torch.int64), std, 0.0)
    assert advantage.tolist() == [0.0] * len(rewards)


def test_no_rows():
    empty = torch.empty(0)
    assert ops.group_norm(empty, empty.long(), "population", 0.0).shape == (0,)


def test_golden_group_statistics():
    rewards, group = torch.tensor([1.0, 0, 0, 1], dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    assert ops.group_norm(rewards, group, "sample", 1e-6)[0] == pytest.approx(0.866023904, abs=1e-9)
    assert ops.group_norm(rewards, group, "sample", 1e-4)[0] == pytest.approx(0.86587543, abs=1e-8)
    assert ops.group_norm(rewards, group, "population", 0.0).tolist() == [1, -1, -1, 1]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=15))
def test_rank_breaks_ties_by_row(rows):
    groups, scores = zip(*rows, strict=True)
    place = ops.rank_within_group(torch.tensor(scores).double(), torch.tensor(groups)).tolist()
    for group in set(groups):
        mine = [i for i, g in enumerate(groups) if g == group]
        for rank, i in enumerate(sorted(mine, key=lambda i: (-scores[i], i))):
            assert place[i] == rank


def test_kl_estimators():
    new = torch.tensor([-0.7, -0.6, -2.5, -0.4, -1.0], dtype=torch.float64)
    ref = torch.tensor([-0.9, -0.6, -2.2, -0.6, -1.1], dtype=torch.float64)
    assert ops.kl_k3_policy_ref(new, ref).mean() == pytest.approx(0.01843154635, abs=1e-10)
    assert ops.kl_k3_policy_ref(ref, new).mean() != pytest.approx(0.01843154635, abs=1e-5)  # the other direction
    np.testing.assert_allclose(ops.kl_k1_policy_ref(new, ref), [0.2, 0, -0.3, 0.2, 0.1], atol=1e-12)
    np.testing.assert_allclose(ops.kl_k2_policy_ref(new, ref), [0.02, 0, 0.045, 0.02, 0.005], atol=1e-12)


@pytest.mark.parametrize("estimate", [ops.kl_k1_policy_ref, ops.kl_k3_policy_ref])
def test_k1_and_k3_are_unbiased_for_kl_policy_ref(estimate):
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    exact = (p * (p / q).log()).sum()
    assert (p * estimate(p.log(), q.log())).sum() == pytest.approx(float(exact), abs=1e-12)


@given(values=st.lists(st.sampled_from([-1.5, -0.5, 0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=9), data=st.data())
def test_max_variance_is_brute_force(values, data):
    number = data.draw(st.integers(1, len(values)))
    x = torch.tensor(values, dtype=torch.float64)
    chosen = ops.max_variance_subset(x, number)
    assert len(set(chosen.tolist())) == number
    best = max(np.var([values[i] for i in subset]) for subset in combinations(range(len(values)), number))
    assert float(x[chosen].var(correction=0)) == pytest.approx(best, abs=1e-12)


def one_rounding_apart(value, dtype):
    return torch.tensor([value, np.nextafter(np.dtype(dtype).type(value), np.inf)] * 2)


@pytest.mark.parametrize("std", sorted(DDOF))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [0.7, 0.1, -3.0, 1e20, 1e-20, 1.0])
def test_rewards_one_rounding_apart_are_constant(std, dtype, value):
    rewards = one_rounding_apart(value, dtype).to(getattr(torch, dtype))
    assert rewards[0] != rewards[1]
    assert ops.group_norm(rewards, torch.zeros(4, dtype=torch.int64), std, 0.0).tolist() == [0.0] * 4


def test_sums_in_another_order_are_constant():
    rewards = torch.tensor([0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1, 0.6], dtype=torch.float64)
    assert len(set(rewards.tolist())) == 2
    assert not ops.group_norm(rewards, torch.zeros(3, dtype=torch.int64), "population", 0.0).any()


@pytest.mark.parametrize("rewards", [[0.7, 0.70001], [1e-30, -1e-30], [0.0, 1e-40], [1e6, 1e6 + 1], [1.0, 1.0 + 1e-6]])
def test_small_differences_that_are_no_rounding_count(rewards):
    advantage = ops.group_norm(torch.tensor(rewards), torch.zeros(2, dtype=torch.int64), "population", 0.0)
    assert sorted(advantage.tolist()) == pytest.approx([-1, 1])


@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-9, 1e-6, 1e-3, 1.0, 1e4, 1e9]), shift=st.integers(-9, 9))
def test_neither_scale_nor_shift_changes_the_subset_of_largest_variance(seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    values = (torch.rand(9, generator=generator) * 4).round().double()  # with ties
    for number in range(1, 10):
        expected = ops.max_variance_subset(values, number)
        assert torch.equal(ops.max_variance_subset(values * scale + shift * scale, number), expected)


def test_a_small_spread_is_no_tie():
    """An absolute tolerance takes all variances below 1e-12 for equal, and two rows from each end."""
    values = torch.tensor([5.0, 0, 0, -1, -1, -1], dtype=torch.float64)
    for scale in (1.0, 1e-7, 1e-30):
        assert sorted(ops.max_variance_subset(values * scale, 4).tolist()) == [0, 3, 4, 5]
