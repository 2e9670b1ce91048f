"""Compare how sampler and trainer changed on the same tokens: what rounding hides in one look at a few of them.

In bfloat16 two engines differ by rounding, 0.04 to 0.1 nats rms a token (sigma): more than many an update moves it.
But rounding has no direction. So the probe, N tokens of responses that the start model sampled, is scored after each
sync by the sampler, by the trainer, and by the trainer acting what may have gone wrong.

- **Nearness**: is the sampler nearer to the trainer as it was at the last sync, at the start, with 0.9 or 1.1 of the
  adapter's scale, without the adapter in all layers of one name, than to the policy? All answers of the trainer are
  rounded alike, so rounding favours none. Weights that differ by d nats rms are told apart from about
  d = sigma sqrt(1.7 Z) / N^(1/4), 0.5 sigma for 700 tokens, or less where the trainer's roundings are partly the same.
  The newest look counts alone, and together with up to four before it.
- **Share**: of what the policy changed since the start, how much does the sampler show? For full fine-tuning, where the
  trainer cannot act a missing part. After a change of x nats rms it is known to Z sigma / (x sqrt(N)), plus half of
  (sigma / x)^2, since rounding in the trainer pulls it down and in the sampler up, and nobody knows whose is larger.

Sums are over responses, whose tokens share rounding, and compared with the root of their summed squares: a sum without
direction passes Z times that in less than exp(-Z^2 / 2) of cases, whatever its distribution (Efron 1969), 4e-5 for 4.5.
A sampler that has the policy is not at that edge: its sums grow away from it as the policy moves.

Not seen: a fault that moves the tokens by less than d, as all do before the policy has moved, and as a sampler that
lags does where it hardly moves; with an adapter less than half of the layers of one name; else a part that makes up
less than `SLACK` of the change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from align.rollout.sync_faults import Finding

Z = 4.5  # how many times the root of the summed squares a sum must be to count as more than chance

SLACK = 0.03  # of the change, that the share may be off besides: merging into bfloat16 loses so much of a LoRA

PART = "part of the weights"  # kind of error: not all that was trained, or at another scale

MEND = "Sync in the other way (sampling.sync): adapter does not round what is small, merged has no scale of its own."

SYNCS = 5  # newest ones that are looked at together


@dataclass(frozen=True)
class Probe:
    """Responses that both score after each sync, each with its prompt."""

    rows: Sequence[Sequence[int]]  # R: tokens of prompt and response
    starts: Sequence[int]  # R: tokens of the prompt

    @property
    def row(self) -> Tensor:
        """[N] the response that each token is of."""
        lengths = [len(ids) - start for ids, start in zip(self.rows, self.starts, strict=True)]
        return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of the probe's N tokens after a sync, in nats."""

    sampler: Tensor  # [N]
    trainer: Tensor  # [N]


@dataclass(frozen=True)
class Share:
    """Between which bounds the share lies that the sampler shows of the trainer's change."""

    low: float
    high: float

    @property
    def off(self) -> bool:
        """Whether it cannot be 1."""
        return self.low > 1 + SLACK or self.high < 1 - SLACK


@dataclass
class Other:
    """Weights that the sampler may have instead of the policy's, as the trainer acts them: a scale of the adapter."""

    what: str  # what it would mean, for the message
    by: float  # times its scale
    part: str | None  # in layers of this name; None: in all
    evidence: list[Tensor] = field(default_factory=list)  # [R] of the newest times that it was looked at


@dataclass
class Drift:
    """What later syncs are compared with on the probe."""

    probe: Probe
    start: Scores  # with the weights that the engine loaded
    behind: str  # the kind of error of a sampler that lags
    others: Sequence[Other] = ()
    trainer: Tensor | None = None  # [N] after the sync before
    evidence: list[Tensor] = field(default_factory=list)  # [R] of each of the newest syncs: `towards` the policy
    syncs: int = 0

    @property
    def turn(self) -> Sequence[Other]:
        """Those that the newest sync is compared with: all have their turn in `SYNCS` syncs."""
        return self.others[self.syncs % SYNCS :: SYNCS]

    def look(self, now: Scores, acted: Sequence[Tensor]) -> tuple[Share, Finding | None]:
        """(the share since the start, what the sampler has instead of the policy; None where nothing says so).

        `acted` holds the trainer's log-probabilities [N] as each of `turn`.
        """
        row, before = self.probe.row, self._before
        found = share(self.start, now, row)
        moved, last = _rms(now.trainer - self.start.trainer), _rms(now.trainer - before)
        on = f"on {len(row)} tokens that moved by {moved:.2g} nats since the start, {last:.2g} in the last step,"
        told = [
            (Finding("base only", f"{on} it has the weights that it loaded"), self.start.trainer, []),
            (Finding(self.behind, f"{on} it has the policy of an earlier sync"), before, self.evidence),
        ]
        for other, trainer in zip(self.turn, acted, strict=True):
            finding = Finding(PART, f"{on} it is nearer to a policy of which {other.what}", MEND)
            told.append((finding, trainer, other.evidence))
        nearer = [one for one in told if is_nearer([*one[2], towards(now, one[1], row)])]
        if nearer:
            return found, min(nearer, key=lambda one: _rms(now.sampler - one[1]))[0]
        if found.off:
            what = (
                f"{on} it shows {found.low:.0%} to {found.high:.0%} of that: a part is missing, or the scale is wrong"
            )
            return found, Finding(PART, what, MEND)
        return found, None

    def keep(self, now: Scores, acted: Sequence[Tensor]) -> None:
        """Remember a sync with which nothing was wrong."""
        row = self.probe.row
        self.evidence = [*self.evidence, towards(now, self._before, row)][-SYNCS:]
        for other, trainer in zip(self.turn, acted, strict=True):
            other.evidence = [*other.evidence, towards(now, trainer, row)][-SYNCS:]
        self.trainer = now.trainer
        self.syncs += 1

    @property
    def _before(self) -> Tensor:
        """[N] the trainer's log-probabilities before the newest sync."""
        return self.start.trainer if self.trainer is None else self.trainer


def share(start: Scores, now: Scores, row: Tensor) -> Share:
    """The share of the change since the start. Where nothing changed, any share is possible.

    The slope is that of the difference of both changes over their mean, so that neither's rounding is favoured.
    """
    trainer, sampler = now.trainer - start.trainer, now.sampler - start.sampler
    middle, apart = (trainer + sampler) / 2, sampler - trainer
    size = float(middle.square().sum())
    if size == 0:
        return Share(-math.inf, math.inf)
    slope = float((apart * middle).sum()) / size
    rest = apart - slope * middle
    at_start = (start.sampler - start.trainer).square().sum()  # rounding alone
    one_sided = float(torch.minimum(rest.square().sum(), 2 * at_start)) / size / 2  # as if it were all on one side
    reach = one_sided + Z * float(_by_row(rest * middle, row).square().sum().sqrt()) / size
    return Share(_share_at(slope - reach), _share_at(slope + reach))


def towards(now: Scores, other: Tensor, row: Tensor) -> Tensor:
    """[R] how much farther the sampler is in each response from `other` log-probabilities of the trainer than from
    those of the policy: squared nats, above 0 where it has the policy."""
    return _by_row((now.sampler - other).square() - (now.sampler - now.trainer).square(), row)


def is_nearer(evidence: Sequence[Tensor]) -> bool:
    """Whether `towards` says that the sampler has the other weights: the newest alone, or with those before it."""
    newest = list(reversed(evidence[-SYNCS:]))
    return any(_strength(torch.stack(newest[: n + 1]).sum(0)) < -Z for n in range(len(newest)))


def _strength(of_rows: Tensor) -> float:
    """The sum over the root of the summed squares."""
    size = float(of_rows.square().sum().sqrt())
    return float(of_rows.sum()) / size if size else 0.0


def _by_row(values: Tensor, row: Tensor) -> Tensor:
    """[R] sums of [N] values."""
    return torch.zeros(int(row[-1]) + 1, dtype=values.dtype).index_add(0, row, values)


def _rms(values: Tensor) -> float:
    """The root of the mean square."""
    return float(values.square().mean().sqrt())


def _share_at(slope: float) -> float:
    """y = c x has the slope 2 (c - 1) / (c + 1) over (x + y) / 2; this is c."""
    return (2 + slope) / (2 - slope) if slope < 2 else math.inf
