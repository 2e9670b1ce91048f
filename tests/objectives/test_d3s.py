"""D3S: golden values A5, schedules, and the limit that is GRPO."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.batches import batch_of, loss_of, random_batch

from align import objectives, ops
from align.config.compose import build_objective
from align.config.recipe_file import ConfigError, RecipeFile
from align.losses import clipped_surrogate
from align.objectives import Objective, grpo
from align.objectives.d3s import (
    CountSchedule,
    FractionSchedule,
    GroupThenBatch,
    max_variance_rows,
    row_means,
    scheduled,
    top_tokens,
)
from align.transforms import group_advantage

D3S_REWARDS = [1.0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1]


def d3s_advantages():
    batch = batch_of([0] * 4 + [1] * 4 + [2] * 4, [1] * 12, rewards=D3S_REWARDS)
    return group_advantage(std="sample", eps=1e-6).apply(batch)


@pytest.mark.parametrize("number, golden", [(3, 1.2440122038), (4, 1.0998756835), (6, 0.8888856013), (8, 0.7499972010)])
def test_max_variance_golden(number, golden):
    advantage = d3s_advantages().advantage[:, 0]
    chosen = ops.max_variance_subset(advantage, number)
    assert len(set(chosen.tolist())) == number
    assert float(advantage[chosen].var(correction=0)) == pytest.approx(golden, abs=1e-9)


def test_max_variance_rows_of_batch_and_group():
    batch = d3s_advantages()
    assert max_variance_rows(rows=CountSchedule(start=1, end=1)).apply(batch).kept.sum() == 3
    assert ops.max_variance_subset(batch.advantage[:, 0], 4).sort().values.tolist() == [0, 4, 6, 7]
    kept = max_variance_rows(rows=2, scope="group").apply(batch).kept
    assert kept.view(3, 4).sum(1).tolist() == [2, 2, 2]


def tokens_batch():
    entropy = [[0.1, 2, 0.5], [1.8, 0.3, 2.4, 0.2], [0.9, 0.05]]
    batch = batch_of([0, 0, 0], [3, 4, 2], entropy=entropy)
    advantage = torch.tensor([1.5, -0.5, 0.866025404], dtype=torch.float64)[:, None]
    return replace(batch, advantage=advantage * batch.mask)


def test_top_tokens_golden():
    batch = tokens_batch()
    assert top_tokens(share=0.5).apply(batch).selected.int().tolist() == [[0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0]]
    assert top_tokens(share=0.2).apply(batch).selected.int().tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert torch.equal(top_tokens(share=1.0).apply(batch).selected, batch.mask)
    response = top_tokens(share=0.5, scope="response").apply(batch).selected.int()
    assert response.tolist() == [[0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize(
    "denominator, aggregation, golden",
    [
        ("selected", "token-mean", -0.5732050808),
        ("full", "token-mean", -0.3184472671),
        ("selected", "seq-mean-token-mean", -0.6220084680),
    ],
)
def test_d3s_denominators_golden(denominator, aggregation, golden):
    batch = top_tokens(share=0.5).apply(tokens_batch())
    batch = replace(batch, old_logprob=torch.zeros_like(batch.weight))
    loss = clipped_surrogate(denominator=denominator, aggregation=aggregation)
    assert float(loss_of(Objective("l", (), (loss,)), batch, batch.old_logprob)[0]) == pytest.approx(golden, abs=1e-9)


def test_ties_of_tokens_go_to_the_first_and_the_number_is_exact():
    batch = replace(tokens_batch(), entropy=torch.zeros(3, 4, dtype=torch.float64))
    assert top_tokens(share=0.4).apply(batch).selected.int().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_schedules():
    rows, share = CountSchedule(start=4, end=16), FractionSchedule(start=0.2, end=1.0)
    assert [math.floor(scheduled(rows, p) + 0.5) for p in (0.0, 0.25, 0.5, 1.0)] == [4, 7, 10, 16]
    assert [scheduled(share, p) for p in (0.25, 0.5)] == pytest.approx([0.4, 0.6])


@pytest.mark.parametrize("scope", ["batch", "group"])
def test_d3s_of_everything_is_grpo(scope):
    batch, logprob = random_batch(4)
    batch = replace(batch, entropy=torch.rand(batch.mask.shape, dtype=torch.float64))
    d3s = objectives.d3s(rows=4, share=1.0, row_scope=scope)
    for a, b in zip(loss_of(d3s, batch, logprob), loss_of(grpo(denominator="selected"), batch, logprob), strict=True):
        assert torch.equal(a, b)


def test_two_stages_are_the_transform_twice_bit_for_bit():
    for seed in range(20):
        batch = group_advantage().apply(random_batch(seed, size=6)[0])
        for rows, then in ((4, 2), (3, 3), (5, 1), (CountSchedule(start=2, end=6), CountSchedule(start=1, end=6))):
            for progress in (0.0, 0.3, 1.0):
                now = replace(batch, progress=progress)
                first = max_variance_rows(rows=rows, scope="group").apply(now)
                expected = max_variance_rows(rows=then, scope="batch").apply(first).kept
                two = max_variance_rows(rows=rows, scope=GroupThenBatch(group_then_batch=then)).apply(now)
                assert torch.equal(two.kept, expected)


def test_two_stages_are_neither_of_the_two():
    """The batch takes the group with one success first; no group may give more than its three."""
    batch = d3s_advantages()
    two = max_variance_rows(rows=3, scope=GroupThenBatch(group_then_batch=2)).apply(batch).kept
    one = max_variance_rows(rows=2, scope="batch").apply(batch).kept
    assert two.sum() == one.sum() == 6 and two.view(3, 4).sum(1).max() <= 3
    assert not torch.equal(one, two)
    d3s = objectives.d3s(rows=3, share=1.0, row_scope=GroupThenBatch(group_then_batch=2), std="sample", eps=1e-6)
    assert torch.equal(d3s.chain[1].apply(batch).kept, two)


@pytest.mark.parametrize("rows, then", [(2, 3), (CountSchedule(start=1, end=8), 2), (4, CountSchedule(start=1, end=5))])
def test_the_second_stage_cannot_keep_more_than_the_first_left(rows, then):
    with pytest.raises(ValueError, match="group_then_batch = .* of . rows a group: it must not be more"):
        max_variance_rows(rows=rows, scope=GroupThenBatch(group_then_batch=then))


def test_two_stages_in_yaml():
    spec = {"name": "d3s", "rows": {"start": 2, "end": 8}, "share": 0.5, "row_scope": {"group_then_batch": 2}}
    assert build_objective(spec, RecipeFile({}), ("objective",)).chain[1].name == "max_variance_rows"
    with pytest.raises(ConfigError, match="it must not be more"):
        build_objective({**spec, "row_scope": {"group_then_batch": 3}}, RecipeFile({}), ("objective",))


def test_the_advantage_of_a_row_is_the_mean_over_its_tokens():
    """Behind a credit of tokens: by first tokens alone rows 0 and 1 would be the furthest apart."""
    batch = batch_of([0] * 4, [3, 3, 2, 1], advantage=[[9.0, 0, 0], [-9, 9, 9], [-1, -3], [4]])
    assert max_variance_rows(rows=2, scope="group").apply(batch).kept.tolist() == [False, False, True, True]
    taken_out = batch.mask.clone()
    taken_out[1, 1:] = False  # now -9 is all that row 1 has
    kept = max_variance_rows(rows=2, scope="group").apply(replace(batch, selected=taken_out)).kept
    assert kept.tolist() == [False, True, False, True]


@given(seed=st.integers(0, 10_000), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_rows_of_one_advantage_are_chosen_by_it_to_the_bit(seed, dtype):
    batch = group_advantage(std="sample", eps=1e-4).apply(random_batch(seed, dtype=dtype)[0])
    assert torch.equal(row_means(batch.advantage, batch.active), batch.advantage[:, 0].double())


def test_empty_rows_and_padding_have_no_advantage():
    batch = batch_of([0] * 3, [0, 1, 2], advantage=[[], [1.0], [-1.0, -1.0]])
    noise = replace(batch, advantage=torch.where(batch.mask, batch.advantage, math.nan))
    for one in (batch, noise):
        assert max_variance_rows(rows=2, scope="group").apply(one).kept.tolist() == [False, True, True]
