"""Gate on what a step's own rollouts say: the mean of sampler less trainer on their tokens, which the update gives."""

from __future__ import annotations

from collections.abc import Mapping

from align.rollout.sync_drift import Z
from align.rollout.sync_faults import SyncError

PART = 1 / 5  # of sampling.tolerance: a mean with its sign, to which rounding adds about half of its variance

NAMES = "sync/rollout_gap", "sync/rollout_gap_error"


def rollouts_agree(update: Mapping[str, float], tolerance: float) -> dict[str, float]:
    """The metrics among those of a step's first update that told; {} where no token of it was sampled and trained.

    Over tokens that the sampler drew, the mean is its KL from the policy: half of the mean square that the two differ
    by, for a small one. So it sees differences above sqrt(2 PART tolerance), 0.32 nats rms in bfloat16 by default, and
    smaller ones not at all. Raises `SyncError` where the mean is farther from 0 than that by more than chance, which
    takes more than Z^2 = 20 responses. What is not finite is left to the sentinel.
    """
    if NAMES[0] not in update:
        return {}
    gap, error = (update[name] for name in NAMES)
    limit = PART * tolerance
    if abs(gap) - Z * error > limit:
        raise SyncError(
            "unknown weights",
            "the rollouts of this step were not sampled from the policy: on their tokens the sampler is off by"
            f" {gap:.2g} nats in the mean, {error:.2g} of it by chance; sampling.tolerance of {tolerance:g} allows"
            f" {limit:.2g}."
            " Sync in the other way (sampling.sync), or with another release of vLLM; where the engine is only less"
            " exact, raise sampling.tolerance.",
        )
    return rollout_gap(update)


def rollout_gap(update: Mapping[str, float]) -> dict[str, float]:
    """The metrics that tell, among those of a step's first update; {} where no token of it was sampled and trained."""
    return {name: update[name] for name in NAMES if name in update}
