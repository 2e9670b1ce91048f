"""Say what a sampler has instead of the policy, by its log-probabilities of a few tokens, its settings and tables.

What is compared, and when, is in `sync_check.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from align.rollout.generator import SamplerLogprobs

MOVED = 1 / 20  # of the tolerance: a policy that moved more cannot leave the sampler's log-probabilities as they were

ROUNDING = 0.5  # mean nats a token up to which weights count as the policy's, badly rounded

ROW = 0.03  # of the length of a row, by which it may differ: rounding to bfloat16 changes it by a tenth of that

SUPPORT, SETTINGS = "temperature or top-p support", "sampling settings"  # kinds of errors

BESIDE = "Look for what sets this beside the recipe."


class SyncError(RuntimeError):
    """The sampler does not sample from the policy.

    `kind` is stale adapter, stale weights, base only, wrong adapter, part of the weights, merge rounding, unknown
    weights, temperature or top-p support, or sampling settings.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class TrainerLogprobs:
    """The trainer's log-probabilities of P tokens, in nats."""

    prompt: Tensor  # [P-1] each token but the first, at temperature 1
    following: Tensor  # [V] every token that may follow, at the sampling temperature; -inf where it is cut off


@dataclass(frozen=True)
class Candidate:
    """Weights that the sampler may have instead of the policy's."""

    kind: str
    what: str  # what it would mean, for the message
    prompt: Tensor  # [P-1] the trainer's log-probabilities with these weights
    samplers: Sequence[list[float]] = ()  # P-1 each: those of engines that had these weights before


@dataclass(frozen=True)
class Finding:
    """The cause of a failed check, and the fix."""

    kind: str  # as in `SyncError`
    what: str
    mend: str = "Sync in the other way (sampling.sync), or with another release of vLLM."


def other_settings(found: Mapping[str, Any], asked: Mapping[str, Any]) -> Finding | None:
    """The settings of an engine's call that are not those that the recipe asks for; None where all are."""
    names = [name for name in sorted({*found, *asked}) if found.get(name) != asked.get(name)]
    told = [f"{name} is {found.get(name, 'neutral')} instead of {asked.get(name, 'neutral')}" for name in names]
    kind = SUPPORT if {"temperature", "top_p", "top_k", "min_p"} & set(names) else SETTINGS
    return Finding(kind, f"by its own settings {', '.join(told)}", BESIDE) if told else None


def other_rows(found: Mapping[str, Tensor], trainer: Mapping[str, Tensor], compared: Sequence[int]) -> Finding | None:
    """The rows of the sampler's tables that are not the trainer's, both along a few directions; None where all are.

    A table in which no row of the tokens compared is the trainer's is kept in another form: those tokens are right.
    """
    for name, rows in found.items():
        own = trainer[name][: len(rows)]
        gap, size = (rows[: len(own)] - own).norm(dim=1), own.norm(dim=1)
        differs = ~(gap <= ROW * size)
        wrong = differs.nonzero()[:, 0].tolist()
        if wrong and not differs[list(compared)].all():
            length, right = float(rows[wrong[0]].norm()), float(size[wrong[0]])
            what = f"{len(wrong)} of {len(own)} rows of its {name} are not the policy's, first that of token {wrong[0]}"
            return Finding("unknown weights", f"{what}, {length / right:.3g} times as long" if right else what)
    return None


def left_behind(
    sampler: SamplerLogprobs, trainer: TrainerLogprobs, earlier: Sequence[Candidate], tolerance: float
) -> bool:
    """Whether the sampler still gives the log-probabilities of an earlier sync, from which the trainer's have moved."""
    same = [candidate for candidate in earlier if sampler.prompt in candidate.samplers]
    return any(mean_of(distance(candidate.prompt, trainer.prompt)) > MOVED * tolerance for candidate in same)


def diagnose(
    sampler: SamplerLogprobs,
    trainer: TrainerLogprobs,
    candidates: Sequence[Candidate],
    *,
    temperature: float,
    tolerance: float,
) -> Finding:
    """Find what makes the sampler differ from the trainer; of candidates that fit alike the first."""

    def gap_to(prompt: Tensor) -> float:
        """Mean gap, in nats, between the sampler and the trainer with some weights."""
        return mean_of(distance(torch.tensor(sampler.prompt), prompt))

    behind = [candidate for candidate in candidates if left_behind(sampler, trainer, [candidate], tolerance)]
    if behind:
        return Finding(behind[0].kind, behind[0].what)
    if gap_to(trainer.prompt) <= tolerance:
        return Finding(SUPPORT, _sampling(sampler, trainer, temperature, tolerance), BESIDE)
    nearest = min(candidates, key=lambda candidate: gap_to(candidate.prompt), default=None)
    if nearest and gap_to(nearest.prompt) <= tolerance:
        return Finding(nearest.kind, nearest.what)
    if gap_to(trainer.prompt) <= ROUNDING:
        what = "it has about the policy's weights: rounded on their way, or a small part of them (a tied head) missing"
        mend = "Sync by adapter (sampling.sync); where the engine is only less exact, raise sampling.tolerance."
        return Finding("merge rounding", what, mend)
    return Finding("unknown weights", "it has no weights that the trainer knows; part of them may not have arrived")


def _sampling(sampler: SamplerLogprobs, trainer: TrainerLogprobs, temperature: float, tolerance: float) -> str:
    """Say how the sampler's distribution differs where the weights are the same.

    At another temperature its log-probabilities are the trainer's, stretched; with its support cut they are the
    trainer's, moved up by the mass that was cut off.
    """
    found, right = following_of(sampler), trainer.following[list(sampler.following)]
    lost, gained = ~found.isfinite() & right.isfinite(), found.isfinite() & ~right.isfinite()
    if lost.any():
        return f"{int(lost.sum())} of the {len(lost)} likeliest tokens can never be sampled: top-k, top-p or min-p"
    if gained.any():
        return f"{int(gained.sum())} tokens can be sampled that the recipe cuts off: top-k, top-p or min-p"
    found, right = found[right.isfinite()], right[right.isfinite()]
    if float((found - right).std(correction=0)) <= tolerance:
        mass = math.exp(-float((found - right).mean()))
        return f"it samples from {mass:.1%} of the distribution: top-k, top-p or min-p"
    x, y = right - right.mean(), found - found.mean()
    stretch = float((x * y).sum() / (x * x).sum())  # slope of the line through the points
    if stretch == 0:
        return f"it samples the likeliest tokens all alike, as at no temperature, and not as at {temperature:g}"
    return f"it samples as at temperature {temperature / stretch:.3g} instead of {temperature:g}"


def following_of(sampler: SamplerLogprobs) -> Tensor:
    """[N] log-probabilities of the next tokens that the sampler gave."""
    return torch.tensor(list(sampler.following.values()))


def distance(one: Tensor, two: Tensor) -> Tensor:
    """Absolute differences; infinite where one is NaN."""
    return (one - two).abs().nan_to_num(math.inf, math.inf)


def mean_of(distance: Tensor) -> float:
    """The mean; 0 of no values, since a prompt of one token has nothing to compare."""
    return float(distance.mean()) if len(distance) else 0.0
