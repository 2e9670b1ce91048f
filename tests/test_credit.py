"""Running a chain: what each transform took, gave and asked for."""

from dataclasses import replace

import torch
from support.batches import batch_of, no_model
from support.counting_learner import CountingLearner, annotate

from align.credit import assign
from align.objectives import gfpo, grpo
from align.objectives.gfpo import AdaptiveK
from align.transforms import Transform


def chain_of(*functions):
    chain = tuple(Transform(name, apply) for name, apply in functions)
    return replace(grpo(), chain=chain)


def advantages(*values):
    return lambda batch: replace(batch, advantage=torch.tensor(values, dtype=torch.float64)[:, None] * batch.mask)


def without(token):
    def apply(batch):
        selected = batch.selected.clone()
        selected[:, token] = False
        return replace(batch, selected=selected)

    return apply


def test_a_token_is_taken_by_the_last_transform_that_left_it_without_credit():
    batch = replace(batch_of([0, 0, 1], [3, 1, 2]), old_logprob=torch.zeros(3, 3))
    objective = chain_of(
        ("some", advantages(1, 0, 0)), ("first", without(0)), ("more", advantages(1, 1, 1)), ("last", without(0))
    )
    credited = assign(objective, batch, no_model)
    assert credited.trace.taken_by.tolist() == [[1, -1, -1], [0, -1, -1], [0, -1, -1]]
    # the third row's second token had no credit before "more", and has some: nothing took it
    assert credited.signal.removed_by == {"some": 2, "first": 1, "more": 0, "last": 0}
    assert credited.signal.with_gradient == 3 and credited.signal.generated == 6


def test_transforms_of_one_name_count_together():
    batch = replace(batch_of([0, 0], [3, 2]), old_logprob=torch.zeros(2, 3))
    objective = chain_of(("set", advantages(1, -1)), ("cut", without(0)), ("cut", without(1)))
    credited = assign(objective, batch, no_model)
    assert credited.trace.taken_by.tolist() == [[1, 2, -1], [1, 2, -1]]
    assert credited.signal.removed_by == {"set": 0, "cut": 4}


def test_advantages_are_kept_where_a_transform_set_them():
    batch = replace(batch_of([0, 0], [3, 2]), old_logprob=torch.zeros(2, 3))
    credited = assign(
        chain_of(("one", advantages(1, 2)), ("cut", without(0)), ("two", advantages(3, 4))), batch, no_model
    )
    assert list(credited.trace.advantages) == [0, 2]
    assert credited.trace.advantages[0][:, 0].tolist() == [1, 2]
    assert credited.trace.advantages[2] is credited.batch.advantage


def test_rows_that_a_model_was_asked_for_are_known():
    batch = batch_of(
        [0, 0, 0, 0], [1, 2, 3, 4], rewards=[0, 1, 1, 0], sampler_logprob=[[-1.0] * n for n in (1, 2, 3, 4)]
    )
    objective = gfpo(k=2)
    terms = replace(
        objective, losses=(replace(objective.losses[0], needs=(*objective.losses[0].needs, "ref_logprob")),)
    )
    credited = assign(terms, batch, annotate(CountingLearner(), "sampler"))
    assert credited.trace.known["ref_logprob"].tolist() == [True, True, False, False]
    assert "sampler_logprob" not in credited.trace.known  # the batch brought it, of all rows


def test_a_memory_is_that_of_before_the_step():
    batch = batch_of([0, 0, 1, 1], [1, 2, 3, 4], rewards=[0, 1, 1, 1], old_logprob=[[0.0] * n for n in (1, 2, 3, 4)])
    objective = gfpo(k=AdaptiveK(very_hard=2, hard=2, medium=2, easy=2))
    assert assign(objective, batch, no_model).trace.state == {0: {"seen": []}}
    assert assign(objective, batch, no_model).trace.state == {0: {"seen": [0.5, 1.0]}}
    assert assign(grpo(), batch, no_model).trace.state == {}
