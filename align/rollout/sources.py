"""Collect a step's batch: rollouts of prompts, or preference pairs of the data."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from align.batch import Batch
from align.config.data_keys import Data
from align.config.recipe import Recipe, RewardFunction
from align.credit import Credited
from align.data.bank import Bank
from align.data.prompts import Pair, Prompts
from align.objectives.objective import Objective
from align.rollout import rollouts, tensors
from align.rollout.journal import Call, Journal
from align.rollout.rollouts import Known, Sampled, Scorer
from align.rollout.sampler import Sampler
from align.rollout.seeds import Draw
from align.system.clock import Clock

TRAINING, SAMPLED, GREEDY = range(3)  # purposes of sampling, each with random numbers of its own


@dataclass(frozen=True)
class Collected:
    """The batch that a source collected for a step: this rank's rows of it, and what all ranks know of all rows."""

    batch: Batch
    sampled: Sequence[Known] = ()  # all that were sampled; none of a source of pairs
    rollouts: Sequence[Known] = ()  # those in the batch, and those without a reward among them
    rewards: Sequence[RewardFunction] = ()  # the functions that scored them
    pairs: Sequence[Pair] = ()  # those of the batch, of a source of pairs


@dataclass(frozen=True)
class SourceBatch:
    """A source's batch of a step, with the credit that each of its objectives assigned."""

    collected: Collected
    credited: Sequence[Credited]


class Source(Protocol):
    """Gives each step its batch. Collective."""

    name: str
    objectives: Sequence[Objective]  # those that learn from it

    def collect(self, step: int, clock: Clock) -> Collected:
        """Collect the batch of a step, counted from 0. The same step gives the same batch."""
        ...


@dataclass(frozen=True)
class RolloutSource:
    """Samples responses to prompts and scores them, each rank its groups; reads those in the journal instead."""

    name: str
    number: int  # its place among the recipe's sources
    prompts: Prompts
    objectives: Sequence[Objective]
    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    scorer: Scorer
    journal: Journal

    @property
    def data(self) -> Data:
        """The source's section of the recipe."""
        return self.recipe.sources()[self.name]

    def collect(self, step: int, clock: Clock) -> Collected:
        """Collect the rollouts of a step. Where none has a reward, the batch has no token to learn from.

        Raises `RewardError` where a reward fails on too many.
        """
        everything, used = self._rollouts(step, clock)
        batch = tensors.to_part(used, self.tokenizer, progress(self.recipe, step), read_by(self.objectives))
        return Collected(batch, everything, used, self.scorer.rewards)

    def _rollouts(self, step: int, clock: Clock) -> tuple[list[Known], list[Known]]:
        """(all rollouts that were sampled, those for the batch).

        Dynamic sampling goes on until the batch is full of mixed groups or its rounds are over. Where no group was
        mixed there is nothing to learn, and the batch is the last round with a reward.
        """
        dynamic, size = self.recipe.sampling.dynamic_sampling, self.data.prompts_per_step
        rounds = dynamic.rounds if dynamic else 1
        everything, full = [], []
        for number in range(rounds):
            scored = self._round(step, number, rounds, clock)
            everything += scored
            full += rollouts.mixed(scored) if dynamic else scored
            groups = sorted({rollout.group for rollout in full})
            if len(groups) >= size:
                break
        used = [rollout for rollout in full if rollout.group in groups[:size]]
        if used:
            return everything, used
        rated = [rollout.group // size for rollout in everything if rollout.reward is not None]
        newest = max(rated, default=number)
        return everything, [rollout for rollout in everything if rollout.group // size == newest]

    def _round(self, step: int, number: int, rounds: int, clock: Clock) -> list[Known]:
        """The rollouts of all ranks of one round; its groups are numbered behind those of the rounds before."""
        size = self.data.prompts_per_step
        call = Call(step, self.number, number, self.sampler.process.index)
        sampled = self._sample(call, step * rounds + number, self.sampler, step, clock)
        with clock("score"):
            score = partial(self.scorer.score, sampled, size * self.recipe.sampling.group_size)
            scored = self.scorer.announce(self.journal.scored(call, sampled, score))
        return [replace(rollout, group=rollout.group + number * size) for rollout in scored]

    def sample_ahead(self, step: int) -> None:
        """Sample the first round of a step into the journal, as `SamplesAhead.sample_ahead` says. What takes too long
        is for whoever waits to end: limits are the main thread's."""
        rounds = self.recipe.sampling.dynamic_sampling.rounds if self.recipe.sampling.dynamic_sampling else 1
        sampler = replace(self.sampler, limit=lambda what, seconds: nullcontext())
        call = Call(step, self.number, 0, sampler.process.index)
        self._sample(call, step * rounds, sampler, step - 1, Clock())

    def _sample(self, call: Call, position: int, sampler: Sampler, policy_step: int, clock: Clock) -> Sampled:
        """This rank's responses to the prompts at a position of the data, by a policy that took so many steps."""
        sampling, seed = self.recipe.sampling, self.recipe.run.seed
        prompts = self.prompts.step(position, self.data.prompts_per_step, seed)
        draw, n, temperature = Draw(seed, position, TRAINING, self.number), sampling.group_size, sampling.temperature

        def sample() -> Sampled:
            found = sampler.sample(prompts, n=n, temperature=temperature, draw=draw, clock=clock)
            return [(*place, replace(response, policy_step=policy_step)) for *place, response in found]

        return self.journal.sampled(call, prompts, sample)


@dataclass(frozen=True)
class PairSource:
    """Takes preference pairs from the data, and their log-probabilities from its bank."""

    name: str
    prompts: Prompts
    objectives: Sequence[Objective]
    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    bank: Bank  # an empty one where the recipe names none

    def collect(self, step: int, clock: Clock) -> Collected:
        """Collect the pairs of a step."""
        count = self.recipe.sources()[self.name].prompts_per_step
        pairs = self.prompts.step(step, count, self.recipe.run.seed)
        return Collected(self.batch(pairs, progress(self.recipe, step)), pairs=pairs)

    def batch(self, pairs: Sequence[Pair], progress: float) -> Batch:
        """Make this rank's part of a batch of pairs; `progress` in [0, 1] is the part of the schedules that is done."""
        return tensors.pairs_to_part(pairs, self.tokenizer, progress, read_by(self.objectives), self.bank)


def read_by(objectives: Sequence[Objective]) -> set[str]:
    """Quantities of a batch that some of the objectives reads."""
    return {name for objective in objectives for name in objective.reads}


def progress(recipe: Recipe, step: int) -> float:
    """The fraction of `optim.schedule_steps` that is done before a step, in [0, 1]."""
    return min(1.0, step / recipe.optim.schedule_steps)
