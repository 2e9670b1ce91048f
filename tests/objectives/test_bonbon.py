"""BoNBoN: golden values and margins, and the limits where it is SFT or IPO."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.batches import random_pairs, result_of
from support.compare import allclose, exactly, same
from support.draws import few, seeds
from support.pair_goldens import on_bonbon

from align.objectives import bonbon, dpo, ipo, sft
from align.objectives.bonbon import best_of_n_beta


def test_golden_bonbon():
    loss, gradient, metrics = on_bonbon(bonbon(n=8))
    assert (loss, metrics["logit"]) == (exactly(102.7173875), exactly(8))
    allclose(gradient, [[-20.2035, -20.2035, 0], [20.1985] * 3])
    assert on_bonbon(bonbon(n=8, alpha=0))[0] == exactly(103.0225)
    assert on_bonbon(bonbon(n=8, alpha=1))[0] == exactly(42)
    assert on_bonbon(bonbon(n=8), policy=(-45, -50))[0] == exactly(328.0003875)


def test_golden_bonbon_as_the_code_computes_it():
    assert on_bonbon(bonbon(n=8, variant="code"))[0] == pytest.approx(0.7960682602, abs=1e-8)
    assert on_bonbon(bonbon(n=8, variant="code", alpha=0))[0] == pytest.approx(0.5890133268, abs=1e-8)


@pytest.mark.parametrize(
    "n, margin, beta",
    [
        (2, 1, 0.5),
        (3, 3, 0.1666667),
        (4, 5.5, 0.0909091),
        (6, 11.416667, 0.0437956),
        (8, 18.15, 0.0275482094),
        (16, 49.773435, 0.0100455),
        (32, 124.844601, 0.0040050),
    ],
)
def test_golden_margins_of_best_of_n(n, margin, beta):
    assert best_of_n_beta(n) == pytest.approx(beta, abs=5e-8)
    assert 1 / (2 * best_of_n_beta(n)) == pytest.approx(margin, abs=5e-7)
    _, gradient, _ = on_bonbon(bonbon(n=n, alpha=0), policy=(-45 + 1 / (2 * best_of_n_beta(n)), -50))
    assert gradient.abs().max() < 1e-9  # the loss is least where the difference is the margin


def test_best_of_one_has_no_beta():
    with pytest.raises(ValueError, match="n must be at least 2"):
        best_of_n_beta(1)


def test_bonbon_pushes_back_what_is_beyond_its_margin_and_dpo_does_not():
    beyond = {"policy": (-20.0, -50.0)}  # a difference of 25 where 18.15 is wanted
    back, on = (on_bonbon(objective, **beyond)[1] for objective in (bonbon(n=8, alpha=0), dpo(beta=0.0275)))
    assert (back[0, :2] > 0).all() and (back[1] < 0).all() and (on[0, :2] < 0).all() and (on[1] > 0).all()


@few
@given(seed=seeds, n=st.integers(2, 16))
def test_bonbon_is_sft_at_alpha_1_and_ipo_at_alpha_0(seed, n):
    batch, current = random_pairs(seed)
    limits = {1: sft(form="sum"), 0: ipo(form="sum", beta=best_of_n_beta(n))}
    for alpha, limit in limits.items():
        loss, gradients, _ = result_of(limit, batch, logprob=current["logprob"])
        found = result_of(bonbon(n=n, alpha=alpha), batch, logprob=current["logprob"])
        same(found[0], loss)
        same(found[1]["logprob"], gradients["logprob"])
