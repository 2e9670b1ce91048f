"""How two objectives agree, worked out by hand."""

import math

import numpy as np
import pytest

from align.xray.against import agreement
from align.xray.credits import CARRIES, Credits


def credits(rows, taken=None, weight=1.0):
    values = [np.asarray(row, float) for row in rows]
    taken = taken or [[CARRIES] * len(row) for row in rows]
    weights = [np.full(len(row), weight) for row in rows]
    return Credits("one", ("cut",), [True] * len(rows), [np.asarray(t) for t in taken], {}, values, weights)


def test_by_hand():
    a = credits([[3.0, 0.0], [-4.0]], taken=[[-1, 0], [-1]])
    b = credits([[-6.0, 8.0], [0.0]], taken=[[-1, -1], [0]], weight=0.5)
    found = agreement(a, b)
    assert (found.flips, found.both, found.either) == (1, 1, 3)
    assert found.overlap == pytest.approx(1 / 3)
    assert found.cosine == pytest.approx((3 * -3) / (5 * 5))
    assert found.effective == pytest.approx((49 / 25, 49 / 25))
    # units: a (0.6, 0, -0.8), b (-0.6, 0.8, 0): gaps 1.2, 0.8, 0.8
    assert found.differ == ((0, 0), (0, 1), (1, 0))


def test_an_objective_agrees_with_itself_whatever_its_scale():
    a, b = credits([[1.0, -2.0, 0.5]]), credits([[2.0, -4.0, 1.0]])
    found = agreement(a, b)
    assert (found.flips, found.overlap, found.differ) == (0, 1.0, ())
    assert found.cosine == pytest.approx(1.0) and found.effective[0] == pytest.approx(found.effective[1])


def test_nothing_that_carries_has_no_numbers_rather_than_zeros():
    none = credits([[1.0, 2.0]], taken=[[0, 0]])
    found = agreement(none, none)
    assert (found.flips, found.both, found.either, found.differ) == (0, 0, 0, ())
    assert all(math.isnan(value) for value in (found.overlap, found.cosine, *found.effective))
