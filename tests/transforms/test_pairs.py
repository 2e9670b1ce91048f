"""Pairs from rollouts: which two responses of a group are compared, and what a preference objective makes of them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.batches import batch_of, no_model, random_pairs, result_of

from align.batch import MissingQuantity
from align.credit import assign
from align.objectives import bonbon, dpo, ipo
from align.transforms import best_and_worst


def paired(rewards, lengths=None, groups=None, kept=None, **arguments):
    """{group: (chosen row, rejected row)}"""
    batch = batch_of(groups or [0] * len(rewards), lengths or [2] * len(rewards), rewards=rewards)
    kept = batch.kept if kept is None else torch.tensor(kept)
    found = best_and_worst(**arguments).apply(replace(batch, kept=kept))
    assert not (found.kept & ~kept).any() and not (found.chosen & ~found.kept).any()
    out = {}
    for row in found.kept.nonzero()[:, 0].tolist():
        out.setdefault(int(found.group[row]), {}).setdefault(bool(found.chosen[row]), []).append(row)
    assert all(len(sides[True]) == len(sides[False]) == 1 for sides in out.values())
    return {group: (sides[True][0], sides[False][0]) for group, sides in out.items()}


@pytest.mark.parametrize(
    "rewards, pair",
    [
        ([0.0, 1.0], (1, 0)),
        ([1.0, 0.0], (0, 1)),
        ([0.5, -2.0, 3.0, 1.0], (2, 1)),
        ([1.0, 0.0, 1.0, 0.0], (0, 1)),  # ties by row order
        ([0.0, 1.0, 0.0, 1.0], (1, 0)),
        ([0.5, 0.0, 0.5, 1.0, 1.0, 0.0], (3, 1)),
        ([1e30, -1e30, 0.0], (0, 1)),
        ([0.3, 0.1 + 0.2, 0.0], (1, 2)),
    ],
)
def test_the_best_and_the_worst_are_compared(rewards, pair):
    assert paired(rewards) == {0: pair}


@pytest.mark.parametrize("rewards", [[0.7], [0.7] * 5, [0.0] * 2, [-1.0] * 3])
def test_a_group_without_contrast_gives_no_pair(rewards):
    assert paired(rewards) == {}


def test_they_differ_by_more_than_the_margin():
    assert paired([0.0, 0.5, 1.0], margin=1.0) == {}
    assert paired([0.0, 0.5, 1.0], margin=0.99) == {0: (2, 0)}


def test_lengths_may_differ_by_the_gap_and_no_further():
    rewards, lengths = [1.0, 0.9, 0.1, 0.0], [9, 3, 7, 2]
    expected = {100: (0, 3), 7: (0, 3), 6: (0, 2), 2: (0, 2), 1: (1, 3), 0: None}
    for gap, pair in expected.items():
        assert paired(rewards, lengths, max_length_gap=gap).get(0) == pair, gap


def test_ties_of_a_gap_go_to_the_better_row_s_order_first():
    """(0, 3) and (2, 1) are equally far apart, with the length of no other pair."""
    assert paired([1.0, 0.0, 1.0, 0.0], [5, 1, 1, 5], max_length_gap=0) == {0: (0, 3)}


def test_both_limits_hold_at_once():
    assert paired([1.0, 0.4, 0.0], [9, 2, 2], max_length_gap=1, margin=0.4) == {}
    assert paired([1.0, 0.5, 0.0], [9, 2, 2], max_length_gap=1, margin=0.4) == {0: (1, 2)}


def test_rows_dropped_before_are_never_compared():
    rewards = [9.0, 1.0, -9.0, 0.0]
    assert paired(rewards, kept=[False, True, False, True]) == {0: (1, 3)}
    assert paired(rewards, kept=[False, True, False, False]) == {}
    assert paired(rewards, kept=[False] * 4) == {}


def test_every_group_has_its_own_pair_wherever_its_rows_stand():
    assert paired([0.0, 5.0, 1.0, 5.0, -1.0, 7.0, 2.0], groups=[7, 2, 7, 2, 7, 3, 2]) == {7: (2, 4), 2: (1, 6)}


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([-1.0, 0.0, 0.5, 1.0]), st.integers(0, 4), st.booleans()),
        min_size=1,
        max_size=9,
    ),
    margin=st.sampled_from([0.0, 0.5, 1.0]),
    gap=st.sampled_from([0, 1, 2, float("inf")]),
)
def test_it_is_brute_force(rows, margin, gap):
    groups, rewards, lengths, kept = map(list, zip(*rows, strict=True))
    expected = {}
    for best in range(len(rows)):
        for worst in range(len(rows)):
            differ = rewards[best] - rewards[worst]
            fits = groups[best] == groups[worst] and kept[best] and kept[worst]
            if fits and differ > margin and abs(lengths[best] - lengths[worst]) <= gap:
                before = expected.get(groups[best])
                if before is None or differ > rewards[before[0]] - rewards[before[1]]:
                    expected[groups[best]] = (best, worst)
    assert paired(rewards, lengths, groups, kept, margin=margin, max_length_gap=gap) == expected


@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.5, 2.0, 4.0]), shift=st.integers(-3, 3))
def test_a_monotone_change_of_rewards_changes_nothing(seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randint(0, 4, (8,), generator=generator).tolist()
    groups = [0, 0, 0, 0, 1, 1, 1, 1]
    assert paired([scale * r + shift for r in rewards], groups=groups) == paired(rewards, groups=groups)


def online(objective):
    return replace(objective, chain=(best_and_worst(),))


@pytest.mark.parametrize("objective", [dpo(), ipo(), bonbon(n=4)], ids=lambda objective: objective.name)
def test_an_objective_online_is_its_loss_on_the_pairs(objective):
    """Groups of three, of which the middle one of each is dropped, and a group without contrast."""
    batch, current = random_pairs(3, pairs=4)
    logprob = current["logprob"]
    rewards = torch.where(batch.chosen, 1.0, -1.0).double()
    expected = result_of(objective, batch, logprob=logprob)
    more = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 0, 2, 4, 6, 1, 1])
    wide = replace(batch.rows(more), chosen=None)
    wide = replace(
        wide,
        group=torch.tensor([*batch.group.tolist(), 0, 1, 2, 3, 9, 9]),
        reward=torch.cat([rewards, torch.zeros(6).double()]),
    )
    found = result_of(online(objective), wide, logprob=logprob[more])
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1]["logprob"][:8], expected[1]["logprob"])
    assert not found[1]["logprob"][8:].any()
    assert assign(online(objective), wide, no_model).signal.removed_by == {
        "best_and_worst": int(batch.length[more[8:]].sum())
    }


def test_a_step_without_contrast_learns_nothing():
    batch = batch_of([0, 0, 1, 1], [1, 2, 2, 1], rewards=[1.0, 1.0, 0.0, 0.0])
    batch = replace(batch, ref_logprob=torch.full_like(batch.weight, -1.0))
    loss, gradients, _ = result_of(online(dpo()), batch, logprob=batch.ref_logprob - 0.5)
    credited = assign(online(dpo()), batch, no_model)
    assert loss == 0 and not gradients["logprob"].any() and not credited.trained.any()
    assert credited.signal.with_gradient == 0 and credited.signal.removed_by == {"best_and_worst": 6}


def test_pairs_need_rewards():
    with pytest.raises(MissingQuantity, match="best_and_worst needs 'reward'"):
        best_and_worst().apply(batch_of([0, 0], [1, 1]))


def test_rewards_one_rounding_apart_are_no_pair():
    assert paired([0.3, 0.1 + 0.2]) == {} and paired([0.3, 0.3001]) == {0: (1, 0)}
