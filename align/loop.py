"""The one loop: sample, score, gather, credit, update, sync. It runs any objective and knows none by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from align import checkpoint, rollouts
from align.bank import Bank
from align.batch import Batch
from align.config import Experiment
from align.credit import Credited, assign
from align.data import Pair, Prompt, Prompts
from align.deadline import deadline
from align.evaluation import drift, pair_summary, summarise
from align.generator import Generator
from align.journal import Journal, Place
from align.learner import Learner
from align.measures import Taken, describe, peak_memory, shares, signal
from align.passes import Clock, Passes
from align.proof import Proof
from align.rollouts import Rank, Rollout
from align.workers import RewardError, Worker

TRAIN, SAMPLED, GREEDY = range(3)  # purposes, each with random numbers of its own
PHASES = ("generate", "score", "credit", "update", "sync", "proof")  # together they are a step


@dataclass(frozen=True)
class Loop:
    """Everything that a step needs. All ranks run it side by side."""

    experiment: Experiment
    sources: dict[str, Prompts]
    banks: dict[str, Bank]  # of the sources that have one
    tokenizer: PreTrainedTokenizerBase
    generator: Generator | None  # None where nothing is sampled
    learner: Learner
    proof: Proof | None  # likewise
    workers: Sequence[Worker] = ()  # of the rewards; none where nothing is sampled
    journal: Journal | None = None  # of a run that can be resumed

    @property
    def held_out(self) -> bool:
        """Whether there is anything to evaluate on."""
        return any(source.held_out for source in self.sources.values())

    @property
    def judged(self) -> list[Prompt]:
        """Held-out prompts whose responses the rewards judge; those of pairs where there are no others."""
        held_out = [prompt for source in self.sources.values() for prompt in source.held_out]
        others = [prompt for prompt in held_out if not isinstance(prompt, Pair)]
        return others if others or self.samples else held_out

    @property
    def samples(self) -> bool:
        """Whether each step samples responses; else the sampler only serves evaluations."""
        return any(data.prompts for data in self.experiment.recipe.sources().values())

    @property
    def rank(self) -> Rank:
        accelerator = self.learner.accelerator
        return Rank(accelerator.process_index, accelerator.num_processes)

    def step(self, step: int) -> tuple[dict[str, float], list[Taken]]:
        """One step, counted from 0: metrics, and what it took from each source with the credit that it earned."""
        clock, recipe = Clock(), self.experiment.recipe
        passes = Passes(self.learner, recipe.sampling.old_logprob, clock)
        progress = min(1.0, step / recipe.optim.schedule_steps)
        taken = [self._take(name, step, progress, passes, clock) for name in self.sources]
        credits = [source.credits for source in taken]
        with clock("update"):
            updates = [self.learner.update(credits, step) for _ in range(recipe.optim.updates_per_step)]
        update = {**updates[-1], "skipped": sum(update["skipped"] for update in updates)}
        proved = self.sync(clock) if self.samples else {}
        spent = {**clock.seconds(), **passes.work, "memory/peak_gib": peak_memory()}
        scored = [rollout for source in taken for rollout in source.scored]
        sampled = {**describe(scored), **shares(scored, self.experiment.rewards)}
        return {**sampled, **signal(taken, update), **update, **proved, **spent}, taken

    def _take(self, name: str, step: int, progress: float, passes: Passes, clock: Clock) -> Taken:
        """A source's batch of this step, credited by the objectives that learn from it."""
        data = self.experiment.recipe.sources()[name]
        scored, taken = [], []
        if data.prompts:
            scored, taken = self._rollouts(name, step, clock)
            rated = [rollout for rollout in taken if rollout.reward is not None]
            if not rated:
                raise RewardError(f"step {step + 1}: {_nothing_rated(scored)}")
            batch = rollouts.to_batch(rated, self.tokenizer, progress)
        else:
            pairs = self.sources[name].step(step, data.prompts_per_step, self.experiment.recipe.run.seed)
            batch = self._pairs(name, pairs, progress)
        with clock("credit"):
            credits = self._credit(name, batch, passes)
        return Taken(batch, scored, taken, credits)

    def _pairs(self, name: str, pairs: Sequence[Pair], progress: float) -> Batch:
        batch = rollouts.pairs_to_batch(pairs, self.tokenizer, progress)
        return self.banks[name].fill(batch) if name in self.banks else batch

    def _credit(self, name: str, batch: Batch, passes: Passes) -> list[Credited]:
        mine = [objective for objective in self.experiment.objectives if objective.data in (None, name)]
        annotate = passes.of_batch(sorted({quantity for objective in mine for quantity in objective.reads}))
        once = self.experiment.recipe.optim.updates_per_step == 1  # then the update's own pass is that of before it
        return [assign(objective, batch, annotate, ("old_logprob",) if once else ()) for objective in mine]

    def _rollouts(self, name: str, step: int, clock: Clock) -> tuple[list[Rollout], list[Rollout]]:
        """(all that were sampled, those for the batch). Dynamic sampling goes on until the batch is full of mixed
        groups or its rounds are over; where none was mixed there is nothing to learn, and the last round with a reward
        stands."""
        recipe = self.experiment.recipe
        dynamic, size = recipe.sampling.dynamic_sampling, recipe.sources()[name].prompts_per_step
        rounds = dynamic.rounds if dynamic else 1
        everything, full = [], []
        for number in range(rounds):
            with clock("generate"):
                sampled = self._sample(name, step, number, rounds)
            with clock("score"):
                scored = self._score(sampled, self._place(name, step, number), size * recipe.sampling.group_size)
            scored = [replace(rollout, group=rollout.group + number * size) for rollout in scored]
            everything += scored
            full += rollouts.mixed(scored) if dynamic else scored
            groups = sorted({rollout.group for rollout in full})
            if len(groups) >= size:
                break
        taken = [rollout for rollout in full if rollout.group in groups[:size]]
        if taken:
            return everything, taken
        rated = [rollout.group // size for rollout in everything if rollout.reward is not None]
        newest = max(rated, default=number)
        return everything, [rollout for rollout in everything if rollout.group // size == newest]

    def _sample(self, name: str, step: int, number: int, rounds: int) -> list[tuple]:
        """This rank's responses to the prompts at a position of the data; a step is one, or as many as `rounds`."""
        recipe, position, place = self.experiment.recipe, step * rounds + number, self._place(name, step, number)
        prompts = self.sources[name].step(position, recipe.sources()[name].prompts_per_step, recipe.run.seed)
        apart = [place.source] if place.source else []  # the random numbers of several sources
        sample = partial(
            self._generate,
            prompts,
            n=recipe.sampling.group_size,
            temperature=recipe.sampling.temperature,
            seed=rollouts.seed_of(recipe.run.seed, position, self.rank.index, TRAIN, *apart),
        )
        return self.journal.sampled(place, prompts, sample) if self.journal else sample()

    def _score(self, sampled: list[tuple], place: Place, rows: int) -> list[Rollout]:
        """All ranks' responses of a step with their rewards, so many rows."""
        score = partial(self._rewarded, sampled, rows)
        return self._gathered(self.journal.scored(place, sampled, score) if self.journal else score())

    def _rewarded(self, sampled: list[tuple], rows: int) -> list[Rollout]:
        return rollouts.score(sampled, self.workers, self.experiment, self.tokenizer, rows)

    def _gathered(self, scored: list[Rollout]) -> list[Rollout]:
        scored = rollouts.gather(scored)
        rollouts.check_failed(scored, self.experiment.recipe.reward_limits)
        return scored

    def _place(self, name: str, step: int, number: int) -> Place:
        return Place(step, list(self.sources).index(name), number, self.rank.index)

    def save(self, done: int) -> None:
        """A checkpoint of the run after so many steps. Raises `CheckpointError`."""
        state = checkpoint.state_at(done, self.learner, self.experiment.objectives, self.journal.lineage)
        checkpoint.save(Path(self.experiment.recipe.run.out) / "checkpoints", self.learner, state)

    def _generate(self, prompts: Sequence[Prompt], *, n: int, temperature: float, seed: int) -> list[tuple]:
        sampling = self.experiment.recipe.sampling
        with deadline("generation", sampling.deadline_s):
            return rollouts.sample(
                *(prompts, self.generator, self.rank),
                n=n,
                temperature=temperature,
                max_tokens=sampling.max_response_tokens,
                seed=seed,
            )

    def sync(self, clock: Clock) -> dict[str, float]:
        """Hand the policy to the sampler, and prove that it has it: metrics. Collective. Raises `SyncError` where the
        sampler has something else."""
        with clock("sync"), deadline("sync", self.experiment.recipe.sampling.deadline_s):
            self.generator.sync(self.learner.model)
        return self.prove(clock)

    def prove(self, clock: Clock) -> dict[str, float]:
        """What `sync` proves, of a sampler that has the policy already."""
        with clock("proof"), deadline("proof of the sync", self.experiment.recipe.sampling.deadline_s):
            gaps = self.proof.check(self.generator, self.learner)
        return {"sync/gap": gaps.mean, "sync/gap_max": gaps.largest}

    def evaluate(self) -> tuple[dict[str, float], list[Rollout]]:
        """Metrics on what was held out, and the greedy responses. The same random numbers every time."""
        metrics, greedy = {}, []
        if self.generator and self.judged:
            metrics, greedy = self._evaluate_responses(self.judged)
        held_out = {name: pairs_in(source.held_out) for name, source in self.sources.items()}
        several = sum(map(bool, held_out.values())) > 1
        for name, pairs in held_out.items():
            if pairs:
                found = self._evaluate_pairs(name, pairs)
                metrics |= {f"eval/pairs/{name}/{k}" if several else f"eval/pairs/{k}": v for k, v in found.items()}
        return metrics, greedy

    def _evaluate_responses(self, prompts: Sequence[Prompt]) -> tuple[dict[str, float], list[Rollout]]:
        recipe = self.experiment.recipe
        proved = {} if self.samples else self.sync(Clock())
        settings = {SAMPLED: (recipe.eval.samples, recipe.eval.temperature), GREEDY: (1, 0.0)}
        found = {}
        for purpose, (n, heat) in settings.items():
            seed = rollouts.seed_of(recipe.run.seed, 0, self.rank.index, purpose)
            sampled = self._generate(prompts, n=n, temperature=heat, seed=seed)
            found[purpose] = self._gathered(self._rewarded(sampled, n * len(prompts)))
        metrics = {**summarise(found[SAMPLED], found[GREEDY], recipe.eval.pass_at), **proved}
        refers = any("ref_logprob" in objective.needs for objective in self.experiment.objectives)
        if refers and self.learner.has_reference and recipe.eval.temperature == recipe.sampling.temperature:
            metrics |= drift([r.group for r in found[SAMPLED]], self._kl(found[SAMPLED]))
        return metrics, found[GREEDY]

    def _kl(self, sampled: Sequence[Rollout]) -> list[float]:
        """log p(response) of the policy less that of the reference: their mean is KL(policy || reference)."""
        batch = rollouts.to_batch([replace(r, reward=0.0) for r in sampled], self.tokenizer)
        ref = self.learner.score(batch, batch.kept, who="reference")["logprob"]
        return torch.where(batch.mask, batch.sampler_logprob - ref, 0.0).sum(1).tolist()

    def _evaluate_pairs(self, name: str, pairs: Sequence[Pair]) -> dict[str, float]:
        """{measure: value} of the objectives that learn from these pairs, their loss among them."""
        batch = self._pairs(name, pairs, 0.0)
        passes = Passes(self.learner, self.experiment.recipe.sampling.old_logprob, Clock())
        credits = [c for c in self._credit(name, batch, passes) if c.objective.preference]
        return pair_summary(*self.learner.measure([credits])) if credits else {}


def pairs_in(prompts: Sequence[Prompt]) -> list[Pair]:
    return [prompt for prompt in prompts if isinstance(prompt, Pair)]


def _nothing_rated(scored: Sequence[Rollout]) -> str:
    failed = [rollout for rollout in scored if rollout.failed]
    if not failed:
        return f"no reward function applied to any of {len(scored)} responses"
    name, why = next(iter(failed[0].failed.items()))
    return f"no response has a reward; on {len(failed)} of {len(scored)} a reward failed, first {name!r}: {why}"
