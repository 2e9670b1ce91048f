"""After each sync, sampler and trainer say what they think of the same few tokens. Where they differ, this tells what
the sampler has instead of the policy.

A sync that did nothing is seen only if the updates since the last one moved these tokens by more than the tolerance; a
sampler that stays behind is seen as soon as their sum does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor

from align.generator import Generator, Probe
from align.learner import Learner
from align.models import Speaker
from align.recipe import Sampling

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}  # nats on a token that two engines may differ by
ROUNDING = 0.5  # nats on a token up to which weights count as the policy's, badly rounded
TOKENS = range(8, 16)  # of the probe: fewer than a block of the sampler's prefix cache, so that it leaves none behind


class SyncError(RuntimeError):
    """The sampler does not sample from the policy; `kind` says in which way: stale adapter (or weights), base only,
    wrong adapter, merge rounding, unknown weights, temperature or top-p support."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Said:
    """What the trainer says about a probe of P tokens, in nats."""

    prompt: Tensor  # [P-1] each token but the first, at temperature 1
    following: Tensor  # [V] every next token, at the sampling temperature


@dataclass(frozen=True)
class Gaps:
    """Largest differences between sampler and trainer, in nats a token."""

    prompt: float
    following: float

    @property
    def largest(self) -> float:
        return max(self.prompt, self.following)


@dataclass(frozen=True)
class Suspect:
    """Weights that the sampler may have instead of the policy's."""

    kind: str
    what: str
    prompt: Tensor  # [P-1] what the trainer says with them


@dataclass(frozen=True)
class Finding:
    kind: str
    what: str
    mend: str = "Sync in the other way (sampling.sync), or with the release of vLLM that align pins."


def compare(probe: Probe, said: Said) -> Gaps:
    return Gaps(_prompt_gap(probe, said.prompt), _largest(_following(probe) - said.following[list(probe.following)]))


def diagnose(probe: Probe, said: Said, suspects: Sequence[Suspect], *, temperature: float, tolerance: float) -> Finding:
    """What makes a probe differ from what the trainer says; of suspects that say the same the first."""
    gap = compare(probe, said).prompt
    if gap <= tolerance:
        what, mend = _sampling(probe, said, temperature, tolerance), "Look for what sets this beside the recipe."
        return Finding("temperature or top-p support", what, mend)
    nearest = min(suspects, key=lambda suspect: _prompt_gap(probe, suspect.prompt), default=None)
    if nearest and _prompt_gap(probe, nearest.prompt) <= tolerance:
        return Finding(nearest.kind, nearest.what)
    if gap <= ROUNDING:
        what = "it has about the policy's weights; something on their way rounds them"
        mend = "Sync by adapter (sampling.sync); where the engine is only less exact, raise sampling.tolerance."
        return Finding("merge rounding", what, mend)
    return Finding("unknown weights", "it has no weights that the trainer knows; part of them may not have arrived")


def _sampling(probe: Probe, said: Said, temperature: float, tolerance: float) -> str:
    """How the distribution that is sampled from differs, where the weights are the same: one of another temperature is
    the trainer's, stretched; one whose support was cut is the trainer's, moved up by what was cut off."""
    found, right = _following(probe), said.following[list(probe.following)]
    inside = found.isfinite()
    if not inside.all():
        return (
            f"{int((~inside).sum())} of the {len(inside)} likeliest tokens can never be sampled: top-k, top-p or min-p"
        )
    stretch = _stretch(found, right)
    if float((found - right).std()) <= tolerance:
        return (
            f"it samples from {math.exp(-float((found - right).mean())):.1%} of the distribution: top-k, top-p or min-p"
        )
    return f"it samples as at temperature {temperature / stretch:.3g} instead of {temperature:g}"


def _stretch(found: Tensor, right: Tensor) -> float:
    """Slope of the line through the points."""
    x, y = right - right.mean(), found - found.mean()
    return float((x * y).sum() / (x * x).sum())


def _prompt_gap(probe: Probe, prompt: Tensor) -> float:
    return _largest(torch.tensor(probe.prompt) - prompt)


def _following(probe: Probe) -> Tensor:
    return torch.tensor(list(probe.following.values()))


def _largest(difference: Tensor) -> float:
    """What is not a number differs by infinity."""
    return max(difference.abs().nan_to_num(math.inf, math.inf).tolist(), default=0.0)


def say(learner: Learner, ids: Sequence[int], who: Speaker = "policy") -> Said:
    """Collective."""
    temperature = learner.engine.module.temperature
    logits = learner.logits(ids, who)
    raw = logits[:-1] * temperature
    prompt = raw.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0] - raw.logsumexp(-1)
    return Said(prompt, logits[-1].log_softmax(-1))


def choose(learner: Learner, prompt: Sequence[int]) -> list[int]:
    """The start of a prompt, up to where the next token is most open: there temperature and support show best.
    Collective."""
    ids = list(prompt[: TOKENS.stop - 1])
    logprobs = learner.logits(ids).log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    first = min(TOKENS.start, len(ids)) - 1
    return ids[: first + int(entropy[first:].argmax()) + 1]


@dataclass
class Proof:
    """Proves each sync on the same tokens, and remembers what the policy said of them before."""

    ids: list[int]
    sampling: Sampling  # settled
    earlier: list[Tensor] = field(default_factory=list)  # [P-1] after each sync so far

    def check(self, generator: Generator, learner: Learner) -> float:
        """Largest gap over ranks, in nats a token. Collective. Raises `SyncError` on all ranks alike."""
        temperature, tolerance = self.sampling.temperature, self.sampling.tolerance
        probe = generator.probe(self.ids, temperature=temperature)
        said = say(learner, self.ids)
        [worst, *_] = sorted(gather_object([(compare(probe, said), probe)]), key=lambda g: -g[0].largest)
        gaps, probe = worst
        if gaps.largest > tolerance:
            suspects = list(self._suspects(learner))
            found = diagnose(probe, said, suspects, temperature=temperature, tolerance=tolerance)
            raise SyncError(found.kind, self._message(found, gaps))
        self.earlier.append(said.prompt)
        return gaps.largest

    def _suspects(self, learner: Learner) -> Iterator[Suspect]:
        """Collective."""
        adapted = isinstance(learner.model, PeftModel)
        if learner.has_reference:
            prompt = say(learner, self.ids, "reference").prompt
            yield Suspect("base only", "it has the base model without what was trained", prompt)
        for back, prompt in enumerate(reversed(self.earlier), start=1):
            kind = "stale adapter" if adapted else "stale weights"
            yield Suspect(kind, f"it has the policy of {back} sync{'s' if back > 1 else ''} ago", prompt)
        if adapted and "guide" in learner.model.peft_config:
            yield Suspect("wrong adapter", "it has the guide's", say(learner, self.ids, "guide").prompt)

    def _message(self, found: Finding, gaps: Gaps) -> str:
        return (
            f"sync {len(self.earlier)}: the sampler does not sample from the policy ({found.kind}): {found.what}."
            f" On {len(self.ids) - 1} prompt tokens it is off by up to {gaps.prompt:.2g} nats, on the next token by up"
            f" to {gaps.following:.2g}; sampling.tolerance is {self.sampling.tolerance:g}. {found.mend}"
        )
