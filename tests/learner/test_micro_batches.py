"""How rows are divided into micro-batches of all ranks."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from align.batch import Batch
from align.learner.micro_batches import divide
from align.model.layouts import padded, shared_prefix, shared_prefix_in_blocks

NOTHING = torch.zeros(400, dtype=torch.bool)


def planned(batch, rows, ranks, tokens, layout, coupled=None, wanted=None, quadratic=0.0):
    wanted = batch.mask if wanted is None else wanted
    coupled = NOTHING[: len(rows)] if coupled is None else coupled
    return divide(batch, wanted, rows, coupled, ranks=ranks, tokens=tokens, layout=layout, quadratic=quadratic)


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=20),
    groups=st.integers(1, 4),
    ranks=st.integers(1, 3),
    tokens=st.one_of(st.integers(1, 80), st.integers(200, 600)),
    layout=st.sampled_from([padded, shared_prefix, shared_prefix_in_blocks]),
    data=st.data(),
)
def test_every_row_once_within_the_budget_and_as_often_on_every_rank(lengths, groups, ranks, tokens, layout, data):
    group = [i % groups for i in range(len(lengths))]
    prompts = [[5] * (3 + 4 * g) for g in group]
    batch = Batch.of(group, [[1] * n for n in lengths], prompt_ids=prompts)
    rows = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))
    plan = planned(batch, rows, ranks, tokens, layout)
    assert sorted(i for rank in plan for micro in rank for i in micro) == rows.nonzero()[:, 0].tolist()
    assert len({len(rank) for rank in plan}) == 1
    for micro in (micro for rank in plan for micro in rank if len(micro) > 1):
        part = batch.rows(torch.tensor(micro))
        assert layout.inputs(part, part.mask).input_ids.numel() <= tokens


def test_ranks_share_evenly_and_groups_stay_together():
    batch = Batch.of([i // 4 for i in range(16)], [[1] * 10] * 16, prompt_ids=[[2] * 5] * 16)
    plan = planned(batch, torch.ones(16, dtype=torch.bool), 2, 1000, shared_prefix)
    assert plan == [[list(range(8))], [list(range(8, 16))]]


def test_the_padded_layout_pays_for_every_prompt():
    batch = Batch.of([0] * 8, [[1] * 50] * 8, prompt_ids=[[2] * 500] * 8)
    rows = torch.ones(8, dtype=torch.bool)
    assert [len(micro) for micro in planned(batch, rows, 1, 1100, padded)[0]] == [2, 2, 2, 2]
    assert [len(micro) for micro in planned(batch, rows, 1, 1100, shared_prefix)[0]] == [8]


@given(lengths=st.lists(st.integers(0, 30), min_size=8, max_size=8), ranks=st.integers(1, 3), tokens=st.integers(1, 80))
def test_rows_of_a_pair_are_in_one_micro_batch_whatever_it_takes(lengths, ranks, tokens):
    """Two groups of four; the first and the last of each are its pair, the others go where they fit."""
    batch = Batch.of([0] * 4 + [1] * 4, [[1] * n for n in lengths], prompt_ids=[[2] * 5] * 8)
    pair = torch.tensor([True, False, False, True] * 2)
    plan = planned(batch, torch.ones(8, dtype=torch.bool), ranks, tokens, shared_prefix, pair)
    micro_of = {i: micro for rank in plan for micro in rank for i in micro}
    assert sorted(micro_of) == list(range(8))
    assert micro_of[0] is micro_of[3] and micro_of[4] is micro_of[7]


def test_attention_counts_and_micro_batches_are_even():
    """A long response attends to more than its tokens; without that the halves are 3 and 5."""
    batch = Batch.of(range(8), [[1] * n for n in (200, 200, 200, 200, 50, 50, 50, 50)], prompt_ids=[[2] * 10] * 8)
    rows = torch.ones(8, dtype=torch.bool)

    def sizes(plan):
        return [len(micro) for micro in plan]

    [one, two] = planned(batch, rows, 2, 10_000, shared_prefix, quadratic=0.0)
    assert sizes(one) == [3] and sizes(two) == [5]
    [one, two] = planned(batch, rows, 2, 10**9, shared_prefix, quadratic=1.0)
    assert sizes(one) == [2] and sizes(two) == [6]
    assert sizes(planned(batch, rows, 1, 1000, shared_prefix)[0]) == [3, 5]  # filled greedily: 6 and 2


def test_only_what_is_wanted_counts():
    batch = Batch.of([0, 1], [[1] * 100] * 2, prompt_ids=[[2] * 10] * 2)
    wanted = batch.mask & (torch.arange(100) < 5)
    rows = torch.ones(2, dtype=torch.bool)
    assert len(planned(batch, rows, 1, 40, shared_prefix, wanted=wanted)[0]) == 1
    assert len(planned(batch, rows, 1, 40, shared_prefix)[0]) == 2


def test_many_blocks_are_planned_in_no_time_worth_counting():
    """As many micro-batches as blocks once made the search run down to the smallest number there is."""
    batch = Batch.of(range(400), [[1] * 100] * 400, prompt_ids=[[2] * 10] * 400)
    [plan] = planned(batch, torch.ones(400, dtype=torch.bool), 1, 100, shared_prefix)
    assert plan == [[i] for i in range(400)]
