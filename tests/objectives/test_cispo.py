"""CISPO: golden values A1."""

import pytest
from support.goldens import a1

from align.objectives.cispo import weighted_logprob


@pytest.mark.parametrize("low, high, golden", [(0.8, 1.2, 0.34058049016), (0, 5, 0.24855679684), (0, 0.28, 0.1344)])
def test_cispo_golden(low, high, golden):
    assert a1(weighted_logprob(ratio_low=low, ratio_high=high)) == pytest.approx(golden, abs=1e-10)
