"""Golden losses that several preference objectives share, and what a slip in them would compute."""

import pytest
import torch
from support.compare import allclose, exactly
from support.pair_goldens import GUIDE, MASKS, REF, on_a, on_b, on_bonbon, read_b

from align.objectives import bonbon, dpo, sft, simpo, sparsepo, tdpo1, tdpo2, tgdpo


@pytest.mark.parametrize(
    "objective, golden",
    [
        (dpo(beta=0.1), 0.6782596763),
        (dpo(beta=1), 0.5543552445),
        (simpo(beta=2, gamma_beta_ratio=0.5), 1.1942181493),
        (simpo(), 1.1942181493),
        (sft(form="sum"), 2.9),
        (sft(), 2.9 / 3),
        (tgdpo(beta=0.1, alpha=0.5, guide_beta=0.01), 0.6781143996),
    ],
)
def test_golden_losses_of_fixture_a(objective, golden):
    assert on_a(objective)[0] == exactly(golden)


def test_fixture_b_is_that_of_the_specification():
    found = read_b()
    ratio = (found["logprob"] - found["ref_logprob"])[:, :2]
    allclose(ratio, [[0.2726637062, -0.4065753740], [-0.5934246260, 0.3118999477]])
    allclose(found["ref_kl"][:, :2], [[0.0672579599, 0.0886630376], [0.0934246260, 0.1119831675]])


@pytest.mark.parametrize(
    "objective, golden",
    [
        (dpo(beta=0.8), 0.6358441325),
        (tdpo1(beta=0.1), 0.6882529057),
        (tdpo1(beta=0.8), 0.6546667974),
        (tdpo2(beta=0.1), 0.6870225710),
        (tdpo2(beta=0.1, alpha=0.5), 0.6870225710),
        (tdpo2(beta=0.8, alpha=0.5), 0.6452066050),
    ],
)
def test_golden_losses_of_fixture_b(objective, golden):
    assert float(on_b(objective)[0]) == exactly(golden)


@pytest.mark.parametrize(
    "found, mutant",
    [
        (lambda: on_a(tgdpo(beta=1, alpha=1))[0], 0.0000594705),  # a padded token counts
        (lambda: on_a(tgdpo(beta=1, alpha=1))[0], 0.5759394199),  # f of the rejected response has a plus
        (lambda: on_a(dpo(beta=0.1))[0], 0.6883929908),  # tokens are paired
        (lambda: float(on_b(sparsepo(beta=0.8, masks="independent"), **MASKS)[0]), 0.4431360457),  # D_w - D_l
        (lambda: on_bonbon(bonbon(n=8))[0], 0.7960682602),  # the flag is ignored
        (lambda: on_bonbon(bonbon(n=8, variant="code"))[0], 102.7173875),
    ],
)
def test_mutants_of_the_specification_are_far(found, mutant):
    assert abs(found() - mutant) > 1e-3


def test_the_mutants_are_reached_by_the_slip_and_by_nothing_less():
    """Their inputs, given on purpose: the third token counted, the guide or the KL turned round."""
    turned = torch.stack([GUIDE[0], 2 * REF[1] - GUIDE[1]])
    assert on_a(tgdpo(beta=1, alpha=1), guide_logprob=turned)[0] == exactly(0.5759394199)
    whole = torch.ones(2, 3, dtype=torch.bool)
    assert on_a(tgdpo(beta=1, alpha=1), mask=whole, selected=whole)[0] == exactly(0.0000594705)
    negative = on_b(sparsepo(beta=0.8, masks="independent"), **MASKS, ref_kl=-read_b()["ref_kl"])
    assert float(negative[0]) == exactly(0.4431360457)
