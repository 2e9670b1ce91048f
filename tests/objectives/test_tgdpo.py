"""TGDPO: golden values, its identities in alpha and in the guide, the factors that it logs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.batches import random_pairs, result_of
from support.compare import allclose, exactly, same
from support.draws import few, seeds
from support.pair_goldens import GUIDE, POLICY, REF, fixture_a, logits_of, on_a

from align.objectives import dpo, tgdpo


@pytest.mark.parametrize(
    "beta, alpha, z, loss, good, bad",
    [
        (0.1, 0, 0.03, 0.6782596763, [-0.0492500562] * 3, [0.0492500562, 0.0492500562, 0]),
        (
            0.1,
            0.5,
            0.03295,
            0.6768078872,
            [-0.0504057326, -0.0479469164, -0.0501598510],
            [0.0511433775, 0.0486845613, 0],
        ),
        (0.1, 2, 0.0418, 0.6724655697, [-0.0538506673, -0.0440596369, -0.0528715643], [0.0567879765, 0.0469969460, 0]),
        (1, 1, 0.89, 0.3440546692, [-0.4366647412, -0.1455549137, -0.4075537584], [0.5239976894, 0.2328878619, 0]),
        (1, 2, 1.48, 0.2050917442, [-0.3708548386, 0, -0.3337693547], [0.4821112902, 0.1112564516, 0]),
    ],
)
def test_golden_tgdpo(beta, alpha, z, loss, good, bad):
    found, gradient, metrics = on_a(tgdpo(beta=beta, alpha=alpha))
    assert (found, metrics["logit"]) == (exactly(loss), exactly(z))
    allclose(gradient, [good, bad])


def test_the_guide_has_its_own_beta():
    assert on_a(tgdpo(beta=0.1, alpha=0.5, guide_beta=0.01))[2]["logit"] == exactly(0.030295)
    assert on_a(tgdpo(beta=0.1, alpha=0.5, guide_beta=0.1))[2]["logit"] == exactly(0.03295)


@few
@given(seed=seeds, beta=st.sampled_from([0.05, 0.1, 0.8]))
def test_tgdpo_without_alpha_or_with_the_reference_as_guide_is_dpo_bit_for_bit(seed, beta):
    batch, current = random_pairs(seed)
    loss, gradients, metrics = result_of(dpo(beta=beta), batch, logprob=current["logprob"])
    unguided = replace(batch, guide_logprob=batch.ref_logprob)
    for objective, given_batch in ((tgdpo(beta=beta, alpha=0), batch), (tgdpo(beta=beta, alpha=2.0), unguided)):
        found = result_of(objective, given_batch, logprob=current["logprob"])
        same(found[0], loss)
        same(found[1]["logprob"], gradients["logprob"])
        assert {name: found[2][name] for name in metrics} == metrics


@few
@given(seed=seeds, alpha=st.floats(0, 3))
def test_both_orders_of_a_pair_sum_to_what_the_label_does_not_decide(seed, alpha):
    batch, current = random_pairs(seed)
    objective, logprob = tgdpo(beta=0.8, alpha=alpha, guide_beta=0.5), current["logprob"]
    both = logits_of(objective, batch, logprob=logprob)
    both = both + logits_of(objective, replace(batch, chosen=~batch.chosen), logprob=logprob)
    product = (batch.guide_logprob - batch.ref_logprob) * (logprob - batch.ref_logprob) * batch.mask
    np.testing.assert_allclose(both, 2 * alpha * 0.8 * 0.5 * product.sum(1).view(3, 2).sum(1), atol=1e-12)


def test_both_orders_of_fixture_a_sum_to_its_golden():
    turned = fixture_a(chosen=torch.tensor([False, True]))
    z = [float(logits_of(tgdpo(beta=1, alpha=1), batch, logprob=POLICY)) for batch in (fixture_a(), turned)]
    assert z == [exactly(0.89), exactly(0.29)]


@few
@given(seed=seeds)
def test_tgdpo_s_margin_is_affine_in_alpha(seed):
    batch, current = random_pairs(seed)
    z = [logits_of(tgdpo(beta=0.8, alpha=alpha), batch, logprob=current["logprob"]) for alpha in (0, 1, 3)]
    np.testing.assert_allclose(z[2] - z[0], 3 * (z[1] - z[0]), atol=1e-12)


@few
@given(seed=seeds, h=st.floats(-2, 2), alpha=st.sampled_from([0.5, 2.0]))
def test_a_constant_guide_scales_the_log_ratio_of_its_side(seed, h, alpha):
    batch, current = random_pairs(seed)
    constant = torch.where(batch.chosen[:, None], batch.ref_logprob + h, batch.ref_logprob)
    found = logits_of(tgdpo(beta=0.8, alpha=alpha), replace(batch, guide_logprob=constant), logprob=current["logprob"])
    scale = 1 + batch.chosen[:, None].double() * (alpha * 0.8 * h)
    scaled = batch.ref_logprob + scale * (current["logprob"] - batch.ref_logprob)
    np.testing.assert_allclose(found, logits_of(dpo(beta=0.8), batch, logprob=scaled), atol=1e-12)


def test_the_guide_amplifies_where_it_agrees_and_damps_where_it_does_not():
    """Good and bad tokens of the chosen and of the rejected response: four regimes of the gradient."""
    plain, guided = on_a(dpo(beta=0.1))[1].abs(), on_a(tgdpo(beta=0.1, alpha=0.5))[1].abs()
    share = guided / plain * (plain[0, 0] / guided[0, 0])  # of the first token; sigmoid(-z) is common to all
    f = torch.tensor([[1.025, 0.975, 1.02], [1.04, 0.99, 1.0]]).double()
    np.testing.assert_allclose(share[:, :2], f[:, :2] / 1.025, rtol=1e-6)


def test_a_loss_that_falls_may_prefer_the_wrong_response():
    """Following the guide on both sides: TGDPO's margin is above 0, DPO's below."""
    moved = REF + 2 * (GUIDE - REF)
    turned = {"chosen": torch.tensor([False, True])}
    _, _, metrics = on_a(tgdpo(beta=1, alpha=3), policy=moved, **turned)
    assert metrics["logit_accuracy"] == 1 and metrics["logit"] > 0
    assert metrics["accuracy"] == 0 and metrics["margin"] < 0


@pytest.mark.parametrize(
    "alpha, floor, low, high, negative, mean",
    [
        (1, -math.inf, 0.5, 1.8, 0, 6 / 5),
        (2, -math.inf, 0, 2.6, 0, 7 / 5),
        (3, -math.inf, -0.5, 3.4, 1 / 5, 8 / 5),
        (3, 0.1, -0.5, 3.4, 1 / 5, 8 / 5),  # before the floor
    ],
)
def test_factors_are_logged_over_the_tokens_of_both_responses(alpha, floor, low, high, negative, mean):
    metrics = on_a(tgdpo(beta=1, alpha=alpha, floor=floor))[2]
    names = ("factor_min", "factor_max", "factor_negative", "factor")
    assert [metrics[name] for name in names] == [exactly(value) for value in (low, high, negative, mean)]


def test_a_negative_factor_turns_the_gradient_round_and_the_floor_does_not():
    assert on_a(tgdpo(beta=1, alpha=3))[1][0, 1] > 0
    assert on_a(tgdpo(beta=1, alpha=3, floor=0))[1][0, 1] == 0
    assert on_a(tgdpo(beta=1, alpha=3, floor=0.1))[1][0, 1] < 0
