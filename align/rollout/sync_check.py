"""Check after each sync that the sampler has the policy: sampler and trainer compute log-probabilities of the same few
tokens. Where these differ, find out what the sampler has instead.

Two things these tokens do not show, so they are asked for: the settings that the engine sampled them with, since a
penalty acts on later tokens only and a wide top-k cuts none of the likeliest; and each row of the embedding and the
head, since a few tokens run through every layer, but read few of these rows.

Engines round differently: in bfloat16 by more than an update moves a token. So a sampler whose log-probabilities are
bit for bit those after an earlier sync, although the policy has moved on since, counts as stale too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor

from align.config.sampling_keys import Sampling
from align.learner import weights
from align.learner.learner import Learner
from align.model.adapters import ModelRole
from align.model.cut import Cut
from align.rollout.generator import Generator, SamplerLogprobs, asked

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}  # mean nats a token that two engines may differ by

MOVED = 1 / 20  # of the tolerance: a policy that moved more cannot leave the sampler's log-probabilities as they were

ROUNDING = 0.5  # mean nats a token up to which weights count as the policy's, badly rounded

ROW = 0.03  # of the length of a row, by which it may differ: rounding to bfloat16 changes it by a tenth of that

SUPPORT, SETTINGS = "temperature or top-p support", "sampling settings"  # kinds of errors

BESIDE = "Look for what sets this beside the recipe."

TOKENS = range(5, 9)  # that are compared: fewer than a block of the sampler's prefix cache, so that none stays behind


class SyncError(RuntimeError):
    """The sampler does not sample from the policy.

    `kind` is stale adapter, stale weights, base only, wrong adapter, merge rounding, unknown weights, temperature or
    top-p support, or sampling settings.
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
class Gaps:
    """Differences between sampler and trainer, in nats a token."""

    prompt: float  # mean
    following: float  # mean
    largest: float

    @property
    def mean(self) -> float:
        """The larger of the two means. Means tell rounding from all else; the extremes of rounding do not."""
        return max(self.prompt, self.following)


@dataclass(frozen=True)
class Candidate:
    """Weights that the sampler may have instead of the policy's."""

    kind: str
    what: str  # what it would mean, for the message
    prompt: Tensor  # [P-1] the trainer's log-probabilities with these weights
    sampler: list[float] | None = None  # P-1: the sampler's, where it had these weights before


@dataclass(frozen=True)
class Finding:
    """The cause of a failed check, and the fix."""

    kind: str  # as in `SyncError`
    what: str
    mend: str = "Sync in the other way (sampling.sync), or with another release of vLLM."


@dataclass
class SyncCheck:
    """Checks each sync on the same tokens, and remembers their log-probabilities of earlier syncs."""

    ids: list[int]
    sampling: Sampling  # with its defaults filled in
    earlier: list[Candidate] = field(default_factory=list)  # one a sync so far

    def check(self, generator: Generator, learner: Learner) -> Gaps:
        """The gaps of the rank that is worst. Collective. Raises `SyncError` on all ranks alike."""
        temperature, tolerance = self.sampling.temperature, self.sampling.tolerance
        sampler, whole = generator.logprobs(self.ids, temperature=temperature), trainer_logprobs(learner, self.ids)
        trainer = cut_alike(whole, sampler, Cut.of(self.sampling), tolerance)
        gaps = compare(sampler, trainer)
        failed = gaps.mean > tolerance or left_behind(sampler, trainer, self.earlier, tolerance)
        settings = other_settings(generator.settings, asked(self.sampling, temperature, 1))
        asked_for = settings or other_rows(generator.vocabulary(), weights.vocabulary(learner.model), self.ids)
        gathered = gather_object([(gaps, failed or asked_for is not None)])
        if any(failed for _, failed in gathered):
            candidates = list(self._candidates(learner))
            mine = (
                diagnose(sampler, trainer, candidates, temperature=temperature, tolerance=tolerance) if failed else None
            )
            if mine is None or mine.kind == SUPPORT:  # the weights that the tokens ran through are right
                mine = asked_for or mine
            raise self._error(*next(found for found in gather_object([(mine, gaps)]) if found[0]))
        kind = "stale adapter" if isinstance(learner.model, PeftModel) else "stale weights"
        what = f"it still has the policy of sync {len(self.earlier)}"
        self.earlier.append(Candidate(kind, what, trainer.prompt, sampler.prompt))
        return max((gaps for gaps, _ in gathered), key=lambda gaps: gaps.mean)

    def _candidates(self, learner: Learner) -> Iterator[Candidate]:
        """Weights that the sampler may have, the likeliest first. Collective."""
        adapted = isinstance(learner.model, PeftModel)
        if learner.has_reference:
            base = trainer_logprobs(learner, self.ids, "base" if adapted else "reference").prompt
            before = next((one.sampler for one in self.earlier if torch.equal(one.prompt, base)), None)
            yield Candidate("base only", "it has the base model without what was trained", base, before)
        yield from reversed(self.earlier)
        if adapted and "guide" in learner.model.peft_config:
            yield Candidate("wrong adapter", "it has the guide's", trainer_logprobs(learner, self.ids, "guide").prompt)

    def _error(self, found: Finding, gaps: Gaps) -> SyncError:
        """The error of this sync."""
        return SyncError(
            found.kind,
            f"sync {len(self.earlier)}: the sampler does not sample from the policy ({found.kind}): {found.what}."
            f" It is off by {gaps.prompt:.2g} nats on {len(self.ids) - 1} prompt tokens and by {gaps.following:.2g} on"
            f" the likeliest next ones; sampling.tolerance is {self.sampling.tolerance:g}. {found.mend}",
        )


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


def cut_alike(trainer: TrainerLogprobs, sampler: SamplerLogprobs, cut: Cut, tolerance: float) -> TrainerLogprobs:
    """The trainer's log-probabilities with the next tokens cut as the recipe says.

    Tokens so near the edge that rounding decides are in or out as the sampler has them.
    """
    if not cut.cuts:
        return trainer
    inside = cut.inside(trainer.following)
    edge = trainer.following[inside].min()
    told, has = torch.tensor(list(sampler.following)), _following(sampler).isfinite()
    near = (trainer.following[told] - edge).abs() <= 2 * tolerance
    inside[told[near]] = has[near]
    return replace(trainer, following=trainer.following.masked_fill(~inside, -math.inf).log_softmax(-1))


def compare(sampler: SamplerLogprobs, trainer: TrainerLogprobs) -> Gaps:
    """The gaps between sampler and trainer, over next tokens that either can sample. NaN counts as an infinite gap."""
    prompt = _distance(torch.tensor(sampler.prompt), trainer.prompt)
    found, right = _following(sampler), trainer.following[list(sampler.following)]
    one_has_it = ~((found == -math.inf) & (right == -math.inf))
    following = _distance(found[one_has_it], right[one_has_it])
    return Gaps(_mean(prompt), _mean(following), float(torch.cat([prompt, following]).max()))


def left_behind(
    sampler: SamplerLogprobs, trainer: TrainerLogprobs, earlier: Sequence[Candidate], tolerance: float
) -> bool:
    """Whether the sampler still gives the log-probabilities of an earlier sync, from which the trainer's have moved."""
    same = [candidate for candidate in earlier if candidate.sampler == sampler.prompt]
    return any(_mean(_distance(candidate.prompt, trainer.prompt)) > MOVED * tolerance for candidate in same)


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
        return _mean(_distance(torch.tensor(sampler.prompt), prompt))

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


def trainer_logprobs(learner: Learner, ids: Sequence[int], who: ModelRole = "policy") -> TrainerLogprobs:
    """One model's log-probabilities of a few tokens, at least one. Collective."""
    logits = learner.logits(ids, who)
    raw = logits[:-1] * learner.engine.module.temperature
    prompt = raw.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0] - raw.logsumexp(-1)
    return TrainerLogprobs(prompt, logits[-1].log_softmax(-1))


def choose(learner: Learner, prompt: Sequence[int]) -> list[int]:
    """Choose the tokens to compare: the start of a prompt, up to where the policy is most certain of the next token.

    There the likeliest tokens are nearly the whole distribution, and whatever cuts its support cuts some of them.
    Collective.
    """
    ids = list(prompt[: TOKENS.stop - 1])
    logprobs = learner.logits(ids).log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    first = min(TOKENS.start, len(ids)) - 1
    return ids[: first + int(entropy[first:].argmin()) + 1]


def _sampling(sampler: SamplerLogprobs, trainer: TrainerLogprobs, temperature: float, tolerance: float) -> str:
    """Say how the sampler's distribution differs where the weights are the same.

    At another temperature its log-probabilities are the trainer's, stretched; with its support cut they are the
    trainer's, moved up by the mass that was cut off.
    """
    found, right = _following(sampler), trainer.following[list(sampler.following)]
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


def _following(sampler: SamplerLogprobs) -> Tensor:
    """[N] log-probabilities of the next tokens that the sampler gave."""
    return torch.tensor(list(sampler.following.values()))


def _distance(one: Tensor, two: Tensor) -> Tensor:
    """Absolute differences; infinite where one is NaN."""
    return (one - two).abs().nan_to_num(math.inf, math.inf)


def _mean(distance: Tensor) -> float:
    """The mean; 0 of no values, since a prompt of one token has nothing to compare."""
    return float(distance.mean()) if len(distance) else 0.0
