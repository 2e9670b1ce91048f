"""Intervals of a mean, against the normal formula."""

import math
import warnings

import numpy as np
import pytest

from align.metrics.interval import interval


def test_interval_is_the_normal_one_for_many_prompts():
    values = np.random.default_rng(1).normal(2.0, 3.0, size=2000)
    mean, low, high = interval(list(values))
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert mean == pytest.approx(values.mean())
    # An end found with 9,999 resamples has a standard error of 1.4% of `half`; a 90% interval would be 16% off.
    assert low == pytest.approx(mean - half, abs=0.06 * half)
    assert high == pytest.approx(mean + half, abs=0.06 * half)
    assert interval(list(values)) == (mean, low, high)


def test_interval_of_rare_successes_is_finite_and_ordered():
    mean, low, high = interval([0.0] * 19 + [1.0])
    assert mean == pytest.approx(0.05)
    assert low == 0.0
    assert high == pytest.approx(0.15)  # 3 of 20: P(Binomial(20, 1/20) <= 3) = 0.984


@pytest.mark.parametrize("values", [[0.7] * 7, [0.1] * 3, [0.0], [1]])
def test_interval_of_equal_values(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert interval(values) == (values[0],) * 3


@pytest.mark.parametrize("values", [[], [math.nan, 1.0], [math.inf, 1.0]])
def test_interval_refuses(values):
    with pytest.raises(ValueError, match="finite numbers"):
        interval(values)
