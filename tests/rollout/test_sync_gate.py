"""The gate over a step's rollouts."""

import pytest

from align.rollout.sync_faults import SyncError
from align.rollout.sync_gate import NAMES, rollout_gap, rollouts_agree


def test_a_small_or_an_uncertain_gap_passes_and_is_told():
    for gap, error in ((0.04, 0.001), (-0.04, 0.001), (0.3, 0.1), (float("nan"), float("nan"))):
        update = {**dict(zip(NAMES, (gap, error), strict=True)), "loss": 1.0}
        assert list(rollouts_agree(update, 0.25)) == list(rollout_gap(update)) == list(NAMES)
    assert rollouts_agree({"loss": 1.0}, 0.25) == rollout_gap({"loss": 1.0}) == {}


@pytest.mark.parametrize("gap", [0.2, -0.2])
def test_a_gap_that_chance_does_not_make_stops_with_the_fix(gap):
    with pytest.raises(SyncError, match=r"off by -?0.2 nats in the mean, 0.01 .* of 0.25 allows 0.05.*sampling.sync"):
        rollouts_agree(dict(zip(NAMES, (gap, 0.01), strict=True)), 0.25)
    rollouts_agree(dict(zip(NAMES, (gap, 0.01), strict=True)), 2.5)
