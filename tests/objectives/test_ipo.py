"""IPO: golden losses and gradients, and its loss at the reference; the limit that is BoNBoN is in test_bonbon.py."""

import pytest
import torch
from hypothesis import given
from support.batches import random_pairs, result_of
from support.compare import close, exactly, matrix
from support.draws import few, seeds
from support.pair_goldens import on_a

from align.objectives import ipo


@pytest.mark.parametrize(
    "objective, golden",
    [
        (ipo(beta=0.1), 24.1736111111),  # (0.4 / 3 - 0.1 / 2 - 5)^2
        (ipo(beta=0.1, form="mean"), 24.1736111111),
        (ipo(beta=0.1, form="sum"), 22.09),  # (0.4 - 0.1 - 5)^2
    ],
)
def test_golden_ipo(objective, golden):
    assert on_a(objective)[0] == exactly(golden)


def test_the_gradient_is_twice_the_distance_to_the_margin():
    close(on_a(ipo(beta=0.1, form="sum"))[1], -2 * 4.7 * matrix([1, 1, 1], [-1, -1, 0]))
    distance = 0.4 / 3 - 0.1 / 2 - 5
    close(on_a(ipo(beta=0.1))[1], 2 * distance * matrix([1 / 3] * 3, [-1 / 2, -1 / 2, 0]))


def test_a_margin_that_is_overshot_is_pushed_back():
    loss, gradient, _ = on_a(ipo(beta=5, form="sum"))  # the margin is 0.1, the difference 0.3
    assert loss == exactly(0.04) and (gradient[0] > 0).all() and (gradient[1, :2] < 0).all()


@pytest.mark.parametrize("form", ["mean", "sum"])
@pytest.mark.parametrize("beta, value", [(0.1, 25.0), (0.4, 1 / (4 * 0.4**2))])
@few
@given(seed=seeds)
def test_the_reference_itself_has_a_known_loss(form, beta, value, seed):
    batch, _ = random_pairs(seed)
    loss, gradients, metrics = result_of(ipo(beta=beta, form=form), batch, logprob=batch.ref_logprob)
    assert float(loss) == pytest.approx(value, rel=1e-15)
    assert metrics["margin"] == 0 and metrics["accuracy"] == 0
    assert torch.equal(gradients["logprob"].abs() > 0, batch.mask)
