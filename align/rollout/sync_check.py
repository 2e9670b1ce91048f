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

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor

from align.batch import Batch
from align.config.sampling_keys import Sampling
from align.learner import weights
from align.learner.learner import Learner
from align.model.adapters import ModelRole, adapted_parts, scaled
from align.model.cut import Cut
from align.rollout.generator import Answer, Generator, SamplerLogprobs, asked
from align.rollout.seeds import PROBE, Seeds
from align.rollout.sync_drift import Drift, Other, Probe, Scores
from align.rollout.sync_faults import (
    SUPPORT,
    Candidate,
    Finding,
    SyncError,
    TrainerLogprobs,
    diagnose,
    distance,
    following_of,
    left_behind,
    mean_of,
    other_rows,
    other_settings,
)

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}  # mean nats a token that two engines may differ by

ROWS, LENGTH = 64, 16  # of the probe: responses, of the shortest prompts, and the most tokens of each

LIKELIEST_PART = 2  # of the tolerance, on next tokens where many others are compared: a healthy run had 0.29 nats there

TOKENS = range(5, 9)  # that are compared: fewer than a block of the sampler's prefix cache, so that none stays behind


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
class Look:
    """What one engine says of a few tokens, beside the trainer."""

    name: str  # of the engine; none of a process's own
    sampler: SamplerLogprobs
    trainer: TrainerLogprobs
    gaps: Gaps
    failed: bool
    asked_for: Finding | None  # what is wrong with its settings or its tables


@dataclass
class SyncCheck:
    """Checks each sync on the same tokens, and remembers their log-probabilities of earlier syncs."""

    ids: list[int]
    sampling: Sampling  # with its defaults filled in
    drift: Drift | None = None  # where rounding may hide what a few tokens show
    earlier: list[Candidate] = field(default_factory=list)  # one a sync so far

    def check(self, generator: Generator, learner: Learner) -> dict[str, float]:
        """{`sync/gap`, `sync/gap_max`: nats a token of the rank that is worst; `sync/share_low`, `sync/share_high`: the
        bounds of all ranks, where a policy that moved gives any}. Collective. Raises `SyncError` on all ranks alike."""
        gaps = self._few(generator, learner)
        shares = self._many(generator, learner, gaps) if self.drift else {}
        return {"sync/gap": gaps.mean, "sync/gap_max": gaps.largest, **shares}

    def _few(self, generator: Generator, learner: Learner) -> Gaps:
        """Compare all that the engines say of a few tokens, their settings and tables; the gaps of the worst rank."""
        answers = generator.answers(self.ids, temperature=self.sampling.temperature)
        whole, tables = trainer_logprobs(learner, self.ids), weights.vocabulary(learner.model)
        looks = [self._look(name, answer, whole, tables) for name, answer in answers.items()]
        worst = max(looks, key=lambda look: (look.failed or look.asked_for is not None, look.gaps.mean))
        gathered = gather_object([(worst.gaps, worst.failed or worst.asked_for is not None)])
        if any(failed for _, failed in gathered):
            mine = self._find(worst, list(self._candidates(learner)))
            raise self._error(*next(found for found in gather_object([(mine, worst.gaps)]) if found[0]))
        what = f"it still has the policy of sync {len(self.earlier)}"
        said = [answer.logprobs.prompt for answer in answers.values()]
        self.earlier.append(Candidate(stale(learner), what, worst.trainer.prompt, said))
        return max((gaps for gaps, _ in gathered), key=lambda gaps: gaps.mean)

    def _look(self, name: str, answer: Answer, whole: TrainerLogprobs, tables: Mapping[str, Tensor]) -> Look:
        """Compare what one engine says with what the trainer says."""
        temperature, tolerance = self.sampling.temperature, self.sampling.tolerance
        sampler = answer.logprobs
        trainer = cut_alike(whole, sampler, Cut.of(self.sampling), tolerance)
        gaps = compare(sampler, trainer)
        likeliest = tolerance if self.drift is None else LIKELIEST_PART * tolerance
        failed = gaps.prompt > tolerance or gaps.following > likeliest
        failed = failed or left_behind(sampler, trainer, self.earlier, tolerance)
        settings = other_settings(answer.settings, asked(self.sampling, temperature, 1))
        asked_for = settings or other_rows(answer.vocabulary, tables, self.ids)
        return Look(name, sampler, trainer, gaps, failed, asked_for)

    def _find(self, look: Look, candidates: Sequence[Candidate]) -> Finding | None:
        """The cause of a look that failed; None of one that did not."""
        limits = dict(temperature=self.sampling.temperature, tolerance=self.sampling.tolerance)
        mine = diagnose(look.sampler, look.trainer, candidates, **limits) if look.failed else None
        if mine is None or mine.kind == SUPPORT:  # the weights that the tokens ran through are right
            mine = look.asked_for or mine
        return replace(mine, what=f"{look.name}: {mine.what}") if mine and look.name else mine

    def _many(self, generator: Generator, learner: Learner, gaps: Gaps) -> dict[str, float]:
        """Compare how many tokens changed in sampler and trainer; the bounds of the share."""
        drift = self.drift
        now, acted = scores(drift.probe, generator, learner), []
        for other in drift.turn:
            with scaled(learner.model, other.by, other.part):
                acted.append(trainer_scores(drift.probe, learner))
        looked = gather_object([(*drift.look(now, acted), gaps)])
        if found := next(((finding, gaps) for _, finding, gaps in looked if finding), None):
            self.earlier.pop()  # it was no sync
            raise self._error(*found)
        drift.keep(now, acted)
        low, high = min(share.low for share, *_ in looked), max(share.high for share, *_ in looked)
        return {"sync/share_low": low, "sync/share_high": high} if math.isfinite(low) and math.isfinite(high) else {}

    def _candidates(self, learner: Learner) -> Iterator[Candidate]:
        """Weights that the sampler may have, the likeliest first. Collective."""
        adapted = isinstance(learner.model, PeftModel)
        if learner.has_reference:
            base = trainer_logprobs(learner, self.ids, "base" if adapted else "reference").prompt
            before = next((one.samplers for one in self.earlier if torch.equal(one.prompt, base)), ())
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


def cut_alike(trainer: TrainerLogprobs, sampler: SamplerLogprobs, cut: Cut, tolerance: float) -> TrainerLogprobs:
    """The trainer's log-probabilities with the next tokens cut as the recipe says.

    Tokens so near the edge that rounding decides are in or out as the sampler has them.
    """
    if not cut.cuts:
        return trainer
    inside = cut.inside(trainer.following)
    edge = trainer.following[inside].min()
    told, has = torch.tensor(list(sampler.following)), following_of(sampler).isfinite()
    near = (trainer.following[told] - edge).abs() <= 2 * tolerance
    inside[told[near]] = has[near]
    return replace(trainer, following=trainer.following.masked_fill(~inside, -math.inf).log_softmax(-1))


def compare(sampler: SamplerLogprobs, trainer: TrainerLogprobs) -> Gaps:
    """The gaps between sampler and trainer, over next tokens that either can sample. NaN counts as an infinite gap."""
    prompt = distance(torch.tensor(sampler.prompt), trainer.prompt)
    found, right = following_of(sampler), trainer.following[list(sampler.following)]
    one_has_it = ~((found == -math.inf) & (right == -math.inf))
    following = distance(found[one_has_it], right[one_has_it])
    return Gaps(mean_of(prompt), mean_of(following), float(torch.cat([prompt, following]).max()))


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


def stale(learner: Learner) -> str:
    """The kind of error of a sampler that has the policy of an earlier sync."""
    return "stale adapter" if isinstance(learner.model, PeftModel) else "stale weights"


def scores(probe: Probe, generator: Generator, learner: Learner, who: ModelRole = "policy") -> Scores:
    """What the sampler and one of the trainer's models say of the probe. Collective."""
    found = generator.score(probe.rows)
    sampler = [value for row, start in zip(found, probe.starts, strict=True) for value in row[start - 1 :]]
    return Scores(torch.tensor(sampler), trainer_scores(probe, learner, who))


def trainer_scores(probe: Probe, learner: Learner, who: ModelRole = "policy") -> Tensor:
    """[N] one model's log-probabilities of the probe, in nats, at temperature 1. Collective."""
    prompts, responses = zip(
        *((ids[:k], ids[k:]) for ids, k in zip(probe.rows, probe.starts, strict=True)), strict=True
    )
    groups = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    batch = Batch.of([groups[tuple(prompt)] for prompt in prompts], responses, prompt_ids=prompts)
    return learner.score(batch, batch.kept, ("plain_logprob",), who)["plain_logprob"][batch.mask]


def faults_of(learner: Learner) -> list[Other]:
    """What may be wrong with an adapter on its way: its scale, or a part of it."""
    if not isinstance(learner.model, PeftModel):
        return []
    scales = [Other(f"the adapter has {by:g} of its scale", by, None) for by in (0.9, 1.1)]
    return scales + [Other(f"the adapter lacks {part}", 0.0, part) for part in adapted_parts(learner.model)]


def start_drift(generator: Generator, learner: Learner, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Drift:
    """Sample the probe from the weights that the engine loaded, and score it with them: before the first sync, and
    before a checkpoint is read, so that a resumed run starts from the same. Collective."""
    chosen = sorted({tuple(ids) for ids in prompts}, key=lambda ids: (len(ids), ids))[:ROWS]
    tokens = min(LENGTH, sampling.max_response_tokens - 1)  # the engine needs room for one more
    n = -(-ROWS // len(chosen))
    settings = dict(n=n, temperature=sampling.temperature, max_tokens=tokens)
    generator.forget()
    responses = generator.generate(chosen, **settings, seeds=Seeds(PROBE, [*range(len(chosen))]))
    rows = [(len(ids), [*ids, *one.ids]) for ids, of_prompt in zip(chosen, responses, strict=True) for one in of_prompt]
    starts, rows = gather_object([tuple(zip(*rows, strict=True))])[0]  # the same on all ranks
    probe = Probe(rows, starts)
    adapted = isinstance(learner.model, PeftModel)
    start = scores(probe, generator, learner, "base" if adapted else "policy")
    return Drift(probe, start, stale(learner), faults_of(learner))
