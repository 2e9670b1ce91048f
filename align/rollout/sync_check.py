"""After each sync, sampler and trainer say what they think of the same few tokens. Where they differ, this tells what
the sampler has instead of the policy.

Engines round differently: in bfloat16 by more than an update moves a token. So a sampler that says bit for bit what it
said after an earlier sync, although the policy has moved on since, counts as stale too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor

from align.config.recipe import Sampling
from align.learner.learner import Learner
from align.model.adapters import ModelRole
from align.rollout.generator import Generator, SamplerLogprobs

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}  # mean nats a token that two engines may differ by

MOVED = 1 / 20  # of the tolerance: more than this cannot leave the sampler's answer as it is

ROUNDING = 0.5  # mean nats a token up to which weights count as the policy's, badly rounded

TOKENS = range(5, 9)  # of the probe: fewer than a block of the sampler's prefix cache, so that it leaves none behind


class SyncError(RuntimeError):
    """The sampler does not sample from the policy; `kind` says in which way: stale adapter (or weights), base only,
    wrong adapter, merge rounding, unknown weights, temperature or top-p support."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class TrainerLogprobs:
    """What the trainer says about a probe of P tokens, in nats."""

    prompt: Tensor  # [P-1] each token but the first, at temperature 1
    following: Tensor  # [V] every next token, at the sampling temperature


@dataclass(frozen=True)
class Gaps:
    """Differences between sampler and trainer, in nats a token."""

    prompt: float  # mean
    following: float  # mean
    largest: float

    @property
    def mean(self) -> float:
        """The worse of the two: rounding is told from all else by means, not by its own rare extremes."""
        return max(self.prompt, self.following)


@dataclass(frozen=True)
class Candidate:
    """Weights that the sampler may have instead of the policy's."""

    kind: str
    what: str
    prompt: Tensor  # [P-1] what the trainer says with them of the prompt
    sampler: list[float] | None = None  # P-1: what the sampler said, where it had them before


@dataclass(frozen=True)
class Finding:
    kind: str
    what: str
    mend: str = "Sync in the other way (sampling.sync), or with another release of vLLM."


def compare(sampler: SamplerLogprobs, trainer: TrainerLogprobs) -> Gaps:
    """What is not a number differs by infinity."""
    prompt = _distance(torch.tensor(sampler.prompt), trainer.prompt)
    following = _distance(_following(sampler), trainer.following[list(sampler.following)])
    return Gaps(_mean(prompt), _mean(following), float(torch.cat([prompt, following]).max()))


def left_behind(
    sampler: SamplerLogprobs, trainer: TrainerLogprobs, earlier: Sequence[Candidate], tolerance: float
) -> bool:
    """Whether the sampler says what it said at an earlier sync and the trainer no longer does."""
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
    """What makes a probe differ from what the trainer says; of suspects that fit alike the first."""

    def gap_to(prompt: Tensor) -> float:
        return _mean(_distance(torch.tensor(sampler.prompt), prompt))

    was_seen = [candidate for candidate in candidates if left_behind(sampler, trainer, [candidate], tolerance)]
    if was_seen:
        return Finding(was_seen[0].kind, was_seen[0].what)
    if gap_to(trainer.prompt) <= tolerance:
        what, mend = _sampling(sampler, trainer, temperature, tolerance), "Look for what sets this beside the recipe."
        return Finding("temperature or top-p support", what, mend)
    nearest = min(candidates, key=lambda candidate: gap_to(candidate.prompt), default=None)
    if nearest and gap_to(nearest.prompt) <= tolerance:
        return Finding(nearest.kind, nearest.what)
    if gap_to(trainer.prompt) <= ROUNDING:
        what = "it has about the policy's weights: rounded on their way, or a small part of them (a tied head) missing"
        mend = "Sync by adapter (sampling.sync); where the engine is only less exact, raise sampling.tolerance."
        return Finding("merge rounding", what, mend)
    return Finding("unknown weights", "it has no weights that the trainer knows; part of them may not have arrived")


def _sampling(sampler: SamplerLogprobs, trainer: TrainerLogprobs, temperature: float, tolerance: float) -> str:
    """How the distribution that is sampled from differs, where the weights are the same: one of another temperature is
    the trainer's, stretched; one whose support was cut is the trainer's, moved up by what was cut off."""
    found, right = _following(sampler), trainer.following[list(sampler.following)]
    inside = found.isfinite()
    if not inside.all():
        return (
            f"{int((~inside).sum())} of the {len(inside)} likeliest tokens can never be sampled: top-k, top-p or min-p"
        )
    if float((found - right).std()) <= tolerance:
        share = math.exp(-float((found - right).mean()))
        return f"it samples from {share:.1%} of the distribution: top-k, top-p or min-p"
    x, y = right - right.mean(), found - found.mean()
    stretch = float((x * y).sum() / (x * x).sum())  # slope of the line through the points
    return f"it samples as at temperature {temperature / stretch:.3g} instead of {temperature:g}"


def _following(sampler: SamplerLogprobs) -> Tensor:
    return torch.tensor(list(sampler.following.values()))


def _distance(one: Tensor, two: Tensor) -> Tensor:
    return (one - two).abs().nan_to_num(math.inf, math.inf)


def _mean(distance: Tensor) -> float:
    """Of nothing 0: a prompt of one token has nothing to compare."""
    return float(distance.mean()) if len(distance) else 0.0


def trainer_logprobs(learner: Learner, ids: Sequence[int], who: ModelRole = "policy") -> TrainerLogprobs:
    """Collective."""
    logits = learner.logits(ids, who)
    raw = logits[:-1] * learner.engine.module.temperature
    prompt = raw.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0] - raw.logsumexp(-1)
    return TrainerLogprobs(prompt, logits[-1].log_softmax(-1))


def choose(learner: Learner, prompt: Sequence[int]) -> list[int]:
    """The start of a prompt, up to where the policy is most certain of the next token: there the likeliest tokens are
    nearly the whole distribution, and whatever cuts its support cuts some of them. Collective."""
    ids = list(prompt[: TOKENS.stop - 1])
    logprobs = learner.logits(ids).log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    first = min(TOKENS.start, len(ids)) - 1
    return ids[: first + int(entropy[first:].argmin()) + 1]


@dataclass
class SyncCheck:
    """Proves each sync on the same tokens, and remembers what was said of them before."""

    ids: list[int]
    sampling: Sampling  # settled
    earlier: list[Candidate] = field(default_factory=list)  # the policy of each sync so far

    def check(self, generator: Generator, learner: Learner) -> Gaps:
        """Those of the rank that is worst. Collective. Raises `SyncError` on all ranks alike."""
        temperature, tolerance = self.sampling.temperature, self.sampling.tolerance
        sampler, trainer = generator.logprobs(self.ids, temperature=temperature), trainer_logprobs(learner, self.ids)
        gaps = compare(sampler, trainer)
        failed = gaps.mean > tolerance or left_behind(sampler, trainer, self.earlier, tolerance)
        gathered = gather_object([(gaps, failed)])
        if any(failed for _, failed in gathered):
            candidates = list(self._candidates(learner))
            mine = (
                diagnose(sampler, trainer, candidates, temperature=temperature, tolerance=tolerance) if failed else None
            )
            raise self._error(*next(found for found in gather_object([(mine, gaps)]) if found[0]))
        kind = "stale adapter" if isinstance(learner.model, PeftModel) else "stale weights"
        what = f"it still has the policy of sync {len(self.earlier)}"
        self.earlier.append(Candidate(kind, what, trainer.prompt, sampler.prompt))
        return max((gaps for gaps, _ in gathered), key=lambda gaps: gaps.mean)

    def _candidates(self, learner: Learner) -> Iterator[Candidate]:
        """Collective."""
        if learner.has_reference:
            base = trainer_logprobs(learner, self.ids, "reference").prompt
            before = next((one.sampler for one in self.earlier if torch.equal(one.prompt, base)), None)
            yield Candidate("base only", "it has the base model without what was trained", base, before)
        yield from reversed(self.earlier)
        if isinstance(learner.model, PeftModel) and "guide" in learner.model.peft_config:
            yield Candidate("wrong adapter", "it has the guide's", trainer_logprobs(learner, self.ids, "guide").prompt)

    def _error(self, found: Finding, gaps: Gaps) -> SyncError:
        return SyncError(
            found.kind,
            f"sync {len(self.earlier)}: the sampler does not sample from the policy ({found.kind}): {found.what}."
            f" It is off by {gaps.prompt:.2g} nats on {len(self.ids) - 1} prompt tokens and by {gaps.following:.2g} on"
            f" the likeliest next ones; sampling.tolerance is {self.sampling.tolerance:g}. {found.mend}",
        )
