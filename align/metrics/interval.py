"""Compute confidence intervals of means over prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def interval(values_P: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): the mean over P prompts with its 95% percentile bootstrap interval.

    Each value is one prompt's mean over its responses: prompts are what was sampled independently, so they are what
    is resampled. The percentile interval is used because it is always defined (BCa is NaN where the jackknife has no
    spread). Equal values, or a single one, give (v, v, v). Raises `ValueError` for no values and for one not finite.
    """
    from scipy.stats import bootstrap  # takes seconds to import, and a check of a recipe needs no interval

    values = np.asarray(values_P, dtype=float)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"an interval needs a list of finite numbers, one a prompt; got {values_P!r}")
    if values.min() == values.max():  # np.mean of equal numbers can be off in the last digit
        return (float(values[0]),) * 3
    found = bootstrap(
        (values,),
        np.mean,
        confidence_level=0.95,
        n_resamples=9999,
        batch=500,  # bounds memory: 500 x P numbers at a time
        method="percentile",
        rng=np.random.default_rng(0),  # the same values always print the same interval
    ).confidence_interval
    return float(values.mean()), float(found.low), float(found.high)
