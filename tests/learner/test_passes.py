"""Passes over models: only for rows that are left, once for all that a model is asked."""

from dataclasses import replace

import pytest
import torch
from support.batches import batch_of
from support.counting_learner import CountingLearner, annotate

from align.credit import assign
from align.learner.passes import ForwardPasses
from align.losses import kl_policy_ref
from align.objectives import gfpo, grpo, mapo, rto, sparsepo
from align.system.clock import Clock
from align.transforms import Transform, best_and_worst


def two_groups():
    """Group 0 is mixed, group 1 constant."""
    batch = batch_of([0] * 4 + [1] * 4, [4, 3, 2, 1] * 2, rewards=[1, 0, 1, 0, 1, 1, 1, 1])
    return replace(batch, sampler_logprob=torch.full(batch.mask.shape, -1.0).double())


def with_kl(objective, rows):
    return replace(objective, losses=(*objective.losses, kl_policy_ref(coef=0.1, rows=rows)))


def test_dropped_and_constant_rows_reach_no_pass():
    learner = CountingLearner()
    passes = ForwardPasses(learner, "trainer", Clock())
    assign(gfpo(k=2), two_groups(), passes.for_batch())
    assert learner.asked == [("policy", [2, 3])]
    assert passes.work == {"pass/old_logprob/rows": 2, "pass/old_logprob/tokens": 3}


def test_old_logprob_of_the_sampler_costs_no_pass():
    learner = CountingLearner()
    assign(gfpo(k=2), two_groups(), annotate(learner, "sampler"))
    assert learner.asked == []


def test_what_the_update_gives_costs_no_pass_but_transforms_still_get_it():
    learner = CountingLearner()
    credited = assign(gfpo(k=2), two_groups(), annotate(learner, "trainer"), ("old_logprob",))
    assert learner.asked == [] and credited.batch.old_logprob is None
    transform = Transform(
        "reads", lambda batch: replace(batch, kept=batch.old_logprob[:, 0] < 0), needs=("old_logprob",)
    )
    objective = replace(grpo(), chain=(transform, *grpo().chain))
    assign(objective, two_groups(), annotate(learner, "trainer"), ("old_logprob",))
    assert learner.asked == [("policy", list(range(8)))]


@pytest.mark.parametrize("rows, scored", [("kept", [2, 3, 6, 7]), ("all", list(range(8)))])
def test_the_reference_scores_the_rows_that_the_kl_term_acts_on(rows, scored):
    learner = CountingLearner()
    assign(with_kl(gfpo(k=2), rows), two_groups(), annotate(learner, "sampler"))
    assert learner.asked == [("reference", scored)]


def test_two_objectives_share_their_passes():
    learner = CountingLearner()
    passes = annotate(learner, "trainer")
    assign(with_kl(gfpo(k=2), "kept"), two_groups(), passes)
    assign(with_kl(grpo(), "all"), two_groups(), passes)
    assert learner.asked == [
        ("policy", [2, 3]),
        ("reference", [2, 3, 6, 7]),
        ("policy", [0, 1]),
        ("reference", [0, 1, 4, 5]),
    ]


def test_a_transform_that_reads_entropy_gets_it_with_the_old_logprob_in_one_pass():
    learner = CountingLearner()
    transform = Transform("reads", lambda batch: replace(batch, kept=batch.entropy[:, 0] < 0), needs=("entropy",))
    objective = replace(grpo(), chain=(transform, *grpo().chain))
    assign(objective, two_groups(), annotate(learner, "trainer", sorted(objective.reads)))
    assert learner.asked == [("policy", list(range(8)))]
    assert set(learner.quantities[0]) == {"entropy", "logprob"}


def test_a_model_is_asked_once_for_all_that_it_says():
    """The value head and the old log-probability of PPO; the reference's own and MaPO's masks."""
    learner, batch = CountingLearner(), replace(two_groups(), guide_logprob=two_groups().sampler_logprob)
    assign(rto(), batch, annotate(learner, "trainer", sorted(rto().reads)))
    asked = dict(zip([who for who, _ in learner.asked], learner.quantities, strict=True))
    assert sorted(asked) == ["policy", "reference"] and set(asked["policy"]) == {"logprob", "value"}
    learner, objective = CountingLearner(), replace(mapo(), chain=(best_and_worst(), *mapo().chain))
    assign(objective, two_groups(), annotate(learner, "sampler", sorted(objective.reads)))
    assert [who for who, _ in learner.asked] == ["reference"]
    assert set(learner.quantities[0]) == {"logprob", "activation_mask"}


def test_what_a_head_gives_is_not_asked_of_the_reference():
    learner, objective = CountingLearner(), replace(sparsepo(), chain=(best_and_worst(), *sparsepo().chain))
    assign(objective, two_groups(), annotate(learner, "sampler", sorted(objective.reads)))
    assert learner.quantities == [("logprob",)]


@pytest.mark.parametrize("rows, scored", [("kept", [[2, 3], [6, 7]]), ("all", [[2, 3], [0, 1, 4, 5, 6, 7]])])
def test_the_kl_to_the_old_policy_needs_no_reference(rows, scored):
    learner, base = CountingLearner(), gfpo(k=2)
    kl = kl_policy_ref(coef=0.1, rows=rows, to="old_policy")
    objective = replace(base, losses=(*base.losses, kl))
    assert "ref_logprob" not in objective.needs
    assign(objective, two_groups(), annotate(learner, "trainer"))
    assert learner.asked == [("policy", part) for part in scored]
