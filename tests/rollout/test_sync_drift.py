"""What tells a sampler's fault from rounding, on made-up log-probabilities that move by more or less than that."""

import copy

import pytest
import torch

from align.rollout.sync_drift import SYNCS, Drift, Other, Probe, Scores, is_nearer, share, towards

ROWS, LENGTH, SIGMA = 64, 12, 0.07  # nats rms that two bfloat16 engines differ by, half of it each
PROBE = Probe([[0] * (3 + LENGTH)] * ROWS, [3] * ROWS)
ROW = PROBE.row


def rounded(values, noise):
    """As an engine says them: half of what it is off by is a whole response's."""
    own, common = (torch.randn(size, generator=noise) for size in (len(values), ROWS))
    return values + SIGMA / 2 * (own + common[ROW])


class Engines:
    """A policy that moves by `step` nats rms at each update; what both say of it and of what may have gone wrong."""

    def __init__(self, seed, step):
        self.noise, self.step = torch.Generator().manual_seed(seed), step
        self.parts = [torch.zeros(ROWS * LENGTH) for _ in range(7)]  # what each module adds to the start
        self.start = -1 - torch.rand(ROWS * LENGTH, generator=self.noise)
        others = [Other("", by, None) for by in (0.9, 1.1)] + [Other("", 0.0, str(part)) for part in range(7)]
        self.drift = Drift(PROBE, self.say(self.start, self.start), "stale adapter", others)

    def say(self, sampler, trainer):
        return Scores(rounded(sampler, self.noise), rounded(trainer, self.noise))

    def acted(self, other):
        parts = [0 if other.part == str(i) else part for i, part in enumerate(self.parts)]
        return self.start + (other.by if other.part is None else 1.0) * sum(parts)

    def update(self):
        for part in self.parts:
            part += self.step / 7**0.5 * torch.randn(part.shape, generator=self.noise)

    def look(self, sampler):
        """The finding; remembered where there is none."""
        now = self.say(sampler, self.start + sum(self.parts))
        acted = [rounded(self.acted(other), self.noise) for other in self.drift.turn]
        _, finding = self.drift.look(now, acted)
        if finding is None:
            self.drift.keep(now, acted)
        return finding


def trained(steps, seed=0, step=0.1):
    engines = Engines(seed, step)
    for _ in range(steps):
        engines.update()
        assert engines.look(engines.start + sum(engines.parts)) is None
    return engines


@pytest.mark.parametrize("step", [0.0, 0.003, 0.03, 0.1, 0.5])
def test_sixty_healthy_syncs_are_never_taken_for_a_fault(step):
    for seed in range(10):
        trained(60, seed, step)


def found_in(engines, sampler):
    """(sync of the first finding, its kind); `sampler` gives what the sampler has."""
    for number in range(1, SYNCS + 1):
        before = engines.start + sum(engines.parts)
        engines.update()
        if finding := engines.look(sampler(engines, before)):
            return number, finding.kind
    return None, ""


def scaled(by):
    return lambda engines, before: engines.start + by * sum(engines.parts)


FAULTS = {
    "stale adapter": lambda engines, before: before,
    "base only": lambda engines, before: engines.start,
    "part of the weights": lambda engines, before: engines.start + sum(engines.parts[1:]),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_are_named_within_five_syncs_once_the_policy_has_moved(kind):
    for seed in range(5):
        number, found = found_in(trained(20, seed, step=0.2), FAULTS[kind])
        assert number and found == kind


@pytest.mark.parametrize("by", [0.9, 1.1])
def test_a_scale_that_is_a_tenth_off_is_a_part_of_the_weights(by):
    for seed in range(5):
        assert found_in(trained(20, seed, step=0.2), scaled(by))[1] == "part of the weights"


def test_what_is_smaller_than_rounding_by_far_is_not_seen():
    """A sampler that lags while the policy hardly moves: harmless, and said to be so in the docstring."""
    assert found_in(trained(20, step=0.002), FAULTS["stale adapter"]) == (None, "")


def test_without_an_adapter_the_share_tells_a_missing_part():
    engines = trained(20, step=0.3)
    engines.drift.others = ()
    assert found_in(engines, FAULTS["part of the weights"])[1] == "part of the weights"


def test_evidence_adds_up_over_syncs():
    weak = [torch.randn(ROWS, generator=torch.Generator().manual_seed(seed)) - 0.4 for seed in range(SYNCS)]
    assert not any(is_nearer([one]) for one in weak) and is_nearer(weak)
    assert not is_nearer([-one for one in weak]) and not is_nearer([torch.zeros(ROWS)])


def test_the_share_is_that_of_the_change_and_has_both_roundings():
    nothing = torch.zeros(ROWS * LENGTH)
    start = Scores(nothing, nothing)
    change = torch.randn(ROWS * LENGTH, generator=torch.Generator().manual_seed(1))
    for part in (0.0, 0.5, 1.0, 1.1, 3.0):
        found = share(start, Scores(part * change, change), ROW)
        assert found.low == pytest.approx(part, abs=1e-4) and found.high == pytest.approx(part, abs=1e-4)
        assert found.off == (part in (0.0, 0.5, 1.1, 3.0))
    assert not share(start, start, ROW).off
    noise = torch.Generator().manual_seed(2)
    start, now = (Scores(rounded(nothing, noise), rounded(nothing, noise)) for _ in range(2))
    hardly = share(start, now, ROW)
    assert not hardly.off and hardly.low < 0.5 and hardly.high > 2


def test_a_fault_that_was_told_is_not_remembered():
    engines = trained(20)
    kept = copy.deepcopy(engines.drift)
    engines.update()
    assert engines.look(engines.start).kind == "base only"
    assert engines.drift.syncs == kept.syncs and torch.equal(engines.drift.trainer, kept.trainer)
    assert engines.look(engines.start + sum(engines.parts)) is None


def test_sums_are_those_of_responses():
    now, other = Scores(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 1.0])), torch.tensor([2.0, 0.0, 1.0])
    assert towards(now, other, torch.tensor([0, 0, 1])).tolist() == [4.0 - 1.0, 0.0]
    assert Probe([[1, 2, 3], [4, 5]], [1, 1]).row.tolist() == [0, 0, 1]
