"""Each rank credits its own groups: with every objective to the last digit what it makes of the whole batch."""

import inspect
from dataclasses import fields, replace

import pytest
import torch
from support.ranks import on_ranks

from align.batch import Batch
from align.credit import assign
from align.losses import entropy_bonus, kl_policy_ref
from align.objectives.gfpo import AdaptiveK
from align.ranks import exchange
from align.registry import OBJECTIVES, PAIRS
from align.transforms import anchor_advantage, best_and_worst, importance_weight, mask_truncated, turn_returns
from align.transforms.transform import Transform

ARGUMENTS = {"k": 3, "rows": 2, "share": 0.5, "tokens_per_row": 4, "n": 2}
PAIRED = {objective.__name__ for objective in PAIRS}


def made(name, **more):
    arguments = ARGUMENTS | more
    factory = OBJECTIVES[name]
    return factory(**{key: value for key, value in arguments.items() if key in inspect.signature(factory).parameters})


def batch(pairs=False, groups=5, seed=0) -> Batch:
    """Ragged groups with every quantity there is, a row without tokens among them."""
    draw = torch.Generator().manual_seed(seed)
    size = 2 if pairs else 4
    rows = groups * size
    lengths = torch.randint(1, 9, (rows,), generator=draw)
    lengths[3] = 0
    ids = [torch.randint(3, 20, (int(n),), generator=draw).tolist() for n in lengths]
    reward = torch.randint(0, 3, (rows,), generator=draw) / 2 + 0.1
    whole = Batch.of(
        [i // size for i in range(rows)],
        ids,
        turns=[[0] * min(3, len(row)) + [-1] * (len(row) > 3) + [1] * (len(row) - 4) for row in ids],
        prompt_ids=[[1, 2 + i // size] for i in range(rows)],
        token_text=[["x." if i % 3 else "y" for i in row] for row in ids],
        progress=0.25,
        reward=reward,
        correct=reward > 0.9,
        truncated=torch.arange(rows) % 5 == 1,
        chosen=torch.arange(rows) % 2 == 0 if pairs else None,
    )
    logprobs = ("sampler_logprob", "old_logprob", "ref_logprob", "guide_logprob")
    names = (*logprobs, "entropy", "value", "reward_mask", "kl_mask", "turn_reward")
    noise = {name: torch.rand(whole.mask.shape, generator=draw) for name in names}
    noise = {
        name: torch.where(whole.mask, -3 * value if name in logprobs else value, 0.0) for name, value in noise.items()
    }
    return replace(
        whole, turn_state=whole.response_ids.new_zeros(whole.mask.shape), special=whole.response_ids == 5, **noise
    )


def given(batch, names, rows, reader):
    """The batch brings everything."""
    return batch


def unlike(objective, pairs=False, **size):
    """Names of what differs between the credit of the whole batch and that of this rank's groups; run on all ranks."""
    whole = batch(pairs, **size)
    mine, rest = exchange.share(whole), [t.state.state_dict() for t in objective.chain if t.state]
    expected = assign(objective, whole, given)
    remembered = [t.state.state_dict() for t in objective.chain if t.state]
    for transform, state in zip((t for t in objective.chain if t.state), rest, strict=True):
        transform.state.load_state_dict(state)
    found, rows = assign(objective, mine, given), mine.row
    out = [] if remembered == [t.state.state_dict() for t in objective.chain if t.state] else ["state"]
    for f in fields(Batch):
        there, here = getattr(expected.batch, f.name), getattr(found.batch, f.name)
        if f.name != "row" and isinstance(there, torch.Tensor) and not same(there[rows], here):
            out.append(f.name)
    for i, (one, other) in enumerate(zip(expected.terms, found.terms, strict=True)):
        theirs, ours = one.token_weights.rows(rows), other.token_weights
        parts = {"weight": (theirs.weight, ours.weight), "trained": (theirs.trained, ours.trained)}
        out += [f"{name} of loss {i}" for name, both in parts.items() if not same(*both)]
        out += [f"count of loss {i}"] * (theirs.count != ours.count)
    out += ["signal"] * (expected.signal != found.signal)
    out += ["taken_by"] * (not same(expected.trace.taken_by[rows], found.trace.taken_by))
    out += ["advantages"] * (list(expected.trace.advantages) != list(found.trace.advantages))
    return out


def same(one, other):
    return one.dtype == other.dtype and torch.equal(one, other)


VARIANTS = {
    **{name: lambda name=name: made(name) for name in OBJECTIVES},
    "gfpo that remembers": lambda: made("gfpo", k=AdaptiveK(very_hard=4, hard=3, medium=3, easy=2, warmup_prompts=1)),
    "gfpo with a metric of one's own": lambda: made("gfpo", metric=lambda batch: batch.reward - batch.reward.mean()),
    "d3s by group": lambda: made("d3s", row_scope="group", token_scope="response"),
    "rto by sentence": lambda: made("rto", variant="semi"),
    "ppo as it is": lambda: made("ppo", whitening="none"),
    "all else": lambda: replace(
        made("grpo"),
        chain=(turn_returns(), anchor_advantage(), mask_truncated(), importance_weight(level="sequence")),
        losses=(*made("grpo").losses, kl_policy_ref(coef=0.1), entropy_bonus(coef=0.1, rows="all")),
    ),
    "online pairs": lambda: replace(made("dpo"), chain=(best_and_worst(),)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_credit_of_own_groups_is_that_of_the_whole_batch(name):
    objective = VARIANTS[name]()
    assert on_ranks(lambda: unlike(objective, name in PAIRED)) == [[], []]


@pytest.mark.parametrize("name", ["grpo", "ktae", "d3s", "ppo", "gfpo that remembers", "all else", "dpo"])
def test_a_rank_without_a_group_takes_part(name):
    objective = VARIANTS[name]()
    found = on_ranks(lambda: unlike(objective, name in PAIRED, groups=2), count=3)
    assert found == [[], [], []]


def test_a_transform_that_says_nothing_sees_the_whole_batch():
    """One that says `group` and does not keep to it gives another result: the test above can fail."""

    def less(batch):
        return replace(batch, advantage=(batch.reward - batch.reward.mean())[:, None] * batch.mask)

    says_nothing, says_group = (
        replace(made("grpo"), chain=(Transform("less", less, **s),)) for s in ({}, {"scope": "group"})
    )
    assert on_ranks(lambda: unlike(says_nothing)) == [[], []]
    assert "advantage" in on_ranks(lambda: unlike(says_group))[0]


def test_rows_come_together_and_go_their_ways_as_they_were():
    def run():
        whole = batch(seed=3)
        mine = exchange.share(whole)
        again = exchange.whole(mine)
        parcel = exchange.pack(exchange.columns_of(mine), mine, torch.arange(len(mine.row)))
        sent = sum(column.values.nbytes for column in {id(c): c for c in parcel.columns.values()}.values())
        return [
            f.name for f in fields(Batch) if not _alike(getattr(whole, f.name), getattr(again, f.name), f.name)
        ], sent

    for differ, _ in on_ranks(run):
        assert differ == []


def _alike(one, other, name):
    if name == "row":
        return True
    return same(one, other) if isinstance(one, torch.Tensor) else one == other


def test_ids_and_log_probabilities_travel_at_eight_bytes_a_token():
    whole = Batch.of([0] * 8, [[5, 6, 7, 8] * n for n in range(100, 108)])
    whole = replace(whole, sampler_logprob=-torch.rand(whole.mask.shape))
    parcel = exchange.pack(exchange.columns_of(whole), whole, torch.arange(8))
    values = {id(column): column.values for column in parcel.columns.values()}.values()
    assert sum(value.nbytes for value in values) < 8.2 * int(whole.size.sum())
