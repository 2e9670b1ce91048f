"""The KL term and the entropy bonus: golden values."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.batches import batch_of, loss_of, random_batch, result_of
from support.draws import few, seeds
from support.goldens import NEW, OLD, a1

from align.losses import clipped_surrogate, entropy_bonus, kl_policy_ref
from align.objectives import Objective, gfpo, grpo


def test_the_kl_term_adds_the_golden_k3():
    plain = a1(clipped_surrogate())
    assert a1(clipped_surrogate(), [kl_policy_ref(coef=0.5)]) - plain == pytest.approx(0.5 * 0.01843154635, abs=1e-10)


def test_entropy_bonus_lowers_the_loss_by_the_mean_entropy():
    batch = batch_of([0, 0], [3, 2], rewards=[1.0, -1.0], old_logprob=OLD)
    entropy = torch.tensor([[1.0, 2, 3], [4, 5, 100]], dtype=torch.float64)
    plain = loss_of(grpo(), batch, NEW)[0]
    bonus = Objective("g", grpo().chain, (*grpo().losses, entropy_bonus(coef=0.1)))
    assert plain - loss_of(bonus, batch, NEW, entropy)[0] == pytest.approx(0.1 * 3.0)


def kl_at(gap, dtype=torch.float32, **keys):
    """(loss, gradient to the log-probability, metrics) of one token that the reference likes `gap` nats more."""
    batch = batch_of([0], [1], rewards=[0.0], dtype=dtype)
    zero = torch.zeros(1, 1, dtype=dtype)
    batch = replace(batch, ref_logprob=zero, old_logprob=zero)
    loss, gradients, metrics = result_of(
        Objective("kl", (), (kl_policy_ref(coef=1.0, **keys),)), batch, logprob=zero - gap
    )
    return float(loss), float(gradients["logprob"]), metrics


@pytest.mark.parametrize("gap", [4.7, 10.0, 88.0, 89.0, 100.0, 1e4, 1e30])
def test_k3_is_bounded_beyond_a_ratio_of_100(gap):
    loss, gradient, metrics = kl_at(gap)
    assert loss == pytest.approx(99 - math.log(100) + 99 * (gap - math.log(100)), rel=1e-5)
    assert gradient == pytest.approx(-99) and metrics["kl_k3_policy_ref_bounded"] == 1.0
    assert metrics["kl_k3_policy_ref"] == pytest.approx(loss)


@given(st.floats(-50, 4.6))
def test_k3_below_the_bound_is_what_it_was_to_the_bit(gap):
    loss, gradient, metrics = kl_at(gap)
    logprob = torch.tensor([-gap], requires_grad=True)
    d = torch.zeros(1) - logprob
    value = d.exp() - d - 1
    (slope,) = torch.autograd.grad(value, logprob)
    assert (loss, gradient, metrics["kl_k3_policy_ref_bounded"]) == (float(value.detach()), float(slope), 0.0)


def test_k3_and_its_gradient_do_not_jump_at_the_bound():
    below, above = (kl_at(math.log(100) + e, torch.float64) for e in (-1e-9, 1e-9))
    assert above[0] - below[0] == pytest.approx(0, abs=1e-6) and above[1] == pytest.approx(below[1], abs=1e-5)


@pytest.mark.parametrize("estimator, value, slope", [("k1", -89.0, 1.0), ("k2", 89.0**2 / 2, -89.0)])
def test_k1_and_k2_have_no_bound(estimator, value, slope):
    loss, gradient, metrics = kl_at(89.0, estimator=estimator)
    assert (loss, gradient) == (pytest.approx(value), pytest.approx(slope)) and len(metrics) == 1


@few
@given(seed=seeds, rows=st.sampled_from(["kept", "all"]), estimator=st.sampled_from(["k1", "k2", "k3"]))
def test_the_kl_to_the_old_policy_is_that_to_a_reference_which_is_the_old_policy(seed, rows, estimator):
    batch, logprob = random_batch(seed)
    same = replace(batch, ref_logprob=batch.old_logprob)
    base, found = gfpo(k=2), []
    for to, on in (("old_policy", batch), ("reference", same)):
        kl = kl_policy_ref(coef=0.3, estimator=estimator, rows=rows, to=to)
        assert kl.needs == (("old_logprob",) if to == "old_policy" else ("ref_logprob",))
        found.append(result_of(replace(base, losses=(*base.losses, kl)), on, logprob=logprob))
    (loss, gradient, old), (expected, slope, ref) = found
    assert torch.equal(loss, expected) and torch.equal(gradient["logprob"], slope["logprob"])
    assert old[f"kl_{estimator}_policy_old"] == ref[f"kl_{estimator}_policy_ref"]


def test_before_the_first_update_the_kl_to_the_old_policy_has_no_gradient():
    for estimator in ("k2", "k3"):
        assert kl_at(0.0, estimator=estimator, to="old_policy")[:2] == (0.0, 0.0)
