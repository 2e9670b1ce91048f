import torch
from hypothesis import given
from hypothesis import strategies as st

from align.batch import Batch
from align.plan import divide


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=20),
    groups=st.integers(1, 4),
    ranks=st.integers(1, 3),
    tokens=st.integers(1, 80),
    data=st.data(),
)
def test_every_row_once_within_the_budget_and_as_often_on_every_rank(lengths, groups, ranks, tokens, data):
    group = [i % groups for i in range(len(lengths))]
    prompts = [[5] * (3 + 4 * g) for g in group]
    batch = Batch.of(group, [[1] * n for n in lengths], prompt_ids=prompts)
    rows = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))
    plan = divide(batch, rows, ranks, tokens)
    assert sorted(i for rank in plan for micro in rank for i in micro) == rows.nonzero()[:, 0].tolist()
    assert len({len(rank) for rank in plan}) == 1
    for micro in (micro for rank in plan for micro in rank if len(micro) > 1):
        cost = sum(lengths[i] for i in micro) + sum(3 + 4 * g for g in {group[i] for i in micro})
        assert cost <= tokens


def test_ranks_share_evenly_and_groups_stay_together():
    batch = Batch.of([i // 4 for i in range(16)], [[1] * 10] * 16, prompt_ids=[[2] * 5] * 16)
    plan = divide(batch, torch.ones(16, dtype=torch.bool), 2, 1000)
    assert plan == [[list(range(8))], [list(range(8, 16))]]
