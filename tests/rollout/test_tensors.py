"""A batch of what was sampled, or of pairs: whole on one rank, and a part of the same rows on each of several."""

from types import SimpleNamespace

import pytest
import torch
from support.rollouts import WORDS, failing, rollout

from align.data.prompts import Pair, Response
from align.ranks import exchange
from align.rollout.tensors import pairs_to_batch, pairs_to_part, to_batch, to_part

LENGTHS = [3, 1, 7, 2, 0, 4, 5, 2]
ROLLOUTS = [
    rollout(i // 2, i % 2, reward=i / 8, length=n, correct=i % 3 == 0, truncated=n > 4) for i, n in enumerate(LENGTHS)
]
COLUMNS = ("response_ids", "mask", "sampler_logprob", "reward", "correct", "truncated", "group")


@pytest.fixture
def ranks(monkeypatch):
    def of(rank, count):
        monkeypatch.setattr(exchange, "place", lambda: (rank, count))

    return of


def known_to(rank, count):
    """What a rank knows of the rollouts: those of its groups whole, of the others what it needs."""
    other = [SimpleNamespace(reward=one.reward, response=SimpleNamespace(size=one.response.size)) for one in ROLLOUTS]
    return [mine if mine.group % count == rank else rest for mine, rest in zip(ROLLOUTS, other, strict=True)]


def test_a_row_has_the_tokens_and_log_probabilities_that_were_sampled():
    batch = to_batch(ROLLOUTS, WORDS)
    assert batch.mask.sum(1).tolist() == LENGTHS and batch.row is None
    for i, one in enumerate(ROLLOUTS):
        n = one.response.size
        assert batch.response_ids[i, :n].tolist() == one.response.ids
        assert batch.sampler_logprob[i, :n].tolist() == one.response.logprobs
        assert not batch.mask[i, n:].any() and not batch.sampler_logprob[i, n:].any()
    assert batch.reward.tolist() == [one.reward for one in ROLLOUTS]
    assert batch.truncated.tolist() == [one.response.truncated for one in ROLLOUTS]


def test_of_nothing_there_is_a_row_that_takes_no_part():
    batch = to_batch([], WORDS)
    assert len(batch.group) == 1 and not batch.mask.any() and not batch.kept.any()


def test_text_is_made_only_where_something_reads_it():
    assert to_batch(ROLLOUTS, WORDS).token_text is None


def test_special_tokens_are_marked_where_there_is_a_token():
    marked = SimpleNamespace(**{**vars(WORDS), "all_special_ids": [5, 0]})
    batch = to_batch(ROLLOUTS, marked)
    assert torch.equal(batch.special, batch.present)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_parts_of_all_ranks_are_the_batch_of_one(ranks, count):
    whole, found = to_batch(ROLLOUTS, WORDS), {}
    for rank in range(count):
        ranks(rank, count)
        part = to_part(known_to(rank, count), WORDS, 0.0, ())
        for at, row in enumerate(part.row.tolist()):
            assert row not in found
            found[row] = {name: getattr(part, name)[at] for name in COLUMNS}
    assert sorted(found) == [*range(len(ROLLOUTS))]
    for row, columns in found.items():
        for name, value in columns.items():
            assert torch.equal(value, getattr(whole, name)[row]), (row, name)


def test_a_rank_without_groups_has_no_row_and_all_columns(ranks):
    ranks(4, 5)
    part = to_part(known_to(4, 5), WORDS, 0.0, ())
    assert part.row.tolist() == [] and part.mask.shape == (0, 7)


def test_one_rank_has_the_whole_batch():
    part = to_part(ROLLOUTS, WORDS, 0.0, ())
    assert part.row is None and torch.equal(part.mask, to_batch(ROLLOUTS, WORDS).mask)


def test_rollouts_without_a_reward_are_in_no_batch(ranks):
    mixed = [failing(9, 0), *ROLLOUTS[:2], failing(9, 1)]
    assert to_part(mixed, WORDS, 0.0, ()).reward.tolist() == [0.0, 0.125]
    ranks(1, 2)
    assert not to_part([failing(9, 0)], WORDS, 0.0, ()).kept.any()


def answer(length):
    return Response([5] * length, [], False)


PAIRS = [Pair([1, 2], f"p{i}", f"p{i}", {}, answer(2 + i), answer(1), i) for i in range(3)]


def test_a_pair_is_a_group_of_two_the_chosen_one_first():
    batch = pairs_to_batch(PAIRS, WORDS)
    assert batch.group.tolist() == [0, 0, 1, 1, 2, 2] and batch.chosen.tolist() == [True, False] * 3
    assert batch.reward.tolist() == [1.0, 0.0] * 3 and batch.mask.sum(1).tolist() == [2, 1, 3, 1, 4, 1]


def test_the_parts_of_pairs_are_the_batch_of_one(ranks):
    whole, rows = pairs_to_batch(PAIRS, WORDS), []
    for rank in range(2):
        ranks(rank, 2)
        part = pairs_to_part(PAIRS, WORDS, 0.0, (), SimpleNamespace(fill=lambda batch: batch))
        rows += part.row.tolist()
        for at, row in enumerate(part.row.tolist()):
            assert torch.equal(part.mask[at], whole.mask[row]) and part.chosen[at] == whole.chosen[row]
            assert part.group[at] == whole.group[row]
    assert sorted(rows) == [*range(6)]
