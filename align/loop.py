"""The one loop: sample, score, gather, credit, update, sync. It runs any objective and knows none by name."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from align import rollouts
from align.batch import Batch
from align.config import Experiment
from align.credit import Credited, assign
from align.data import Prompts
from align.evaluation import summarise
from align.generator import Generator
from align.learner import Learner
from align.rollouts import Rank, Rollout
from align.scoring import RewardError

TRAIN, SAMPLED, GREEDY = range(3)  # purposes, each with random numbers of its own
PHASES = ("generate", "score", "credit", "update", "sync")  # together they are a step


@dataclass(frozen=True)
class Loop:
    """Everything that a step needs. All ranks run it side by side."""

    experiment: Experiment
    prompts: Prompts
    tokenizer: PreTrainedTokenizerBase
    generator: Generator
    learner: Learner

    @property
    def rank(self) -> Rank:
        accelerator = self.learner.accelerator
        return Rank(accelerator.process_index, accelerator.num_processes)

    def step(self, step: int) -> tuple[dict[str, float], list[Rollout], list[Credited]]:
        """One step, counted from 0: metrics, the rollouts of all ranks in the batch, and the credit they earned."""
        clock, recipe = Clock(), self.experiment.recipe
        scored, taken = self._rollouts(step, clock)
        rated = [rollout for rollout in taken if rollout.reward is not None]
        if not rated:
            raise RewardError(f"step {step + 1}: no reward function applied to any of {len(scored)} responses")
        progress = min(1.0, step / recipe.optim.schedule_steps)
        batch = rollouts.to_batch(rated, self.tokenizer.all_special_ids, progress)
        passes = Passes(self.learner, recipe.sampling.old_logprob, clock)
        with clock("credit"):
            credits = [assign(objective, batch, passes) for objective in self.experiment.objectives]
        update = {}
        with clock("update"):
            for _ in range(recipe.optim.updates_per_step):
                update = self.learner.update(credits, step)
        with clock("sync"):
            self.generator.sync(self.learner.model)
        spent = {**clock.seconds(), **passes.work, "memory/peak_gib": peak_memory()}
        return {**describe(scored), **signal(scored, taken, credits, update), **update, **spent}, taken, credits

    def _rollouts(self, step: int, clock: Clock) -> tuple[list[Rollout], list[Rollout]]:
        """(all that were sampled, those for the batch). Dynamic sampling goes on until the batch is full of mixed
        groups or its rounds are over; where none was mixed there is nothing to learn and the last round stands."""
        recipe = self.experiment.recipe
        dynamic, size = recipe.sampling.dynamic_sampling, recipe.data.prompts_per_step
        rounds = dynamic.rounds if dynamic else 1
        everything, full = [], []
        for number in range(rounds):
            with clock("generate"):
                sampled = self._sample(step * rounds + number)
            with clock("score"):
                scored = rollouts.gather(rollouts.score(sampled, self.experiment, self.tokenizer))
            scored = [replace(rollout, group=rollout.group + number * size) for rollout in scored]
            everything += scored
            full += rollouts.mixed(scored) if dynamic else scored
            groups = sorted({rollout.group for rollout in full})
            if len(groups) >= size:
                break
        taken = [rollout for rollout in full if rollout.group in groups[:size]]
        return everything, taken or scored

    def _sample(self, position: int) -> list[tuple]:
        """This rank's responses to the prompts at a position of the data; a step is one, or a few."""
        recipe = self.experiment.recipe
        return rollouts.sample(
            self.prompts.step(position, recipe.data.prompts_per_step, recipe.run.seed),
            self.generator,
            self.rank,
            n=recipe.sampling.group_size,
            temperature=recipe.sampling.temperature,
            max_tokens=recipe.sampling.max_response_tokens,
            seed=rollouts.seed_of(recipe.run.seed, position, self.rank.index, TRAIN),
        )

    def evaluate(self) -> tuple[dict[str, float], list[Rollout]]:
        """Metrics on the held-out prompts, and the greedy responses. The same random numbers every time."""
        recipe = self.experiment.recipe
        settings = {SAMPLED: (recipe.eval.samples, recipe.eval.temperature), GREEDY: (1, 0.0)}
        found = {}
        for purpose, (n, heat) in settings.items():
            sampled = rollouts.sample(
                self.prompts.held_out,
                self.generator,
                self.rank,
                n=n,
                temperature=heat,
                max_tokens=recipe.sampling.max_response_tokens,
                seed=rollouts.seed_of(recipe.run.seed, 0, self.rank.index, purpose),
            )
            found[purpose] = rollouts.gather(rollouts.score(sampled, self.experiment, self.tokenizer))
        return summarise(found[SAMPLED], found[GREEDY], recipe.eval.pass_at), found[GREEDY]


class Passes:
    """Runs a model when a link or a loss asks for what only a model knows, once for each row and quantity."""

    def __init__(self, learner: Learner, old_from: str, clock: Clock):
        self._learner, self._old_from, self._clock = learner, old_from, clock
        self._done: dict[str, tuple[Tensor, Tensor]] = {}  # quantity -> (rows that have it, values)
        self.work: dict[str, int] = {}  # rows and tokens that went through a model, for the log

    def __call__(self, batch: Batch, names: Sequence[str], rows_B: Tensor, reader: str) -> Batch:
        for name in names:
            if name == "old_logprob" and self._old_from == "sampler":
                batch = replace(batch, old_logprob=batch.sampler_logprob)
            elif name in COMPUTED:
                self._compute(batch, name, rows_B)
                batch = replace(batch, **{name: self._done[name][1]})
            else:
                batch.need(name, reader)
        return batch

    def _compute(self, batch: Batch, name: str, rows_B: Tensor) -> None:
        if name not in self._done:
            self._done[name] = torch.zeros_like(rows_B), torch.zeros_like(batch.weight)
        missing = rows_B & ~self._done[name][0]
        if not missing.any():
            return
        with self._clock(f"pass/{name}"):
            for quantity, values in COMPUTED[name](self._learner, batch, missing).items():
                done, old = self._done.get(quantity, (torch.zeros_like(rows_B), torch.zeros_like(batch.weight)))
                self._done[quantity] = done | missing, torch.where(missing[:, None], values, old)
        for unit, count in (("rows", missing.sum()), ("tokens", batch.mask[missing].sum())):
            key = f"pass/{name}/{unit}"
            self.work[key] = self.work.get(key, 0) + int(count)


def _policy_pass(learner: Learner, batch: Batch, rows_B: Tensor) -> dict[str, Tensor]:
    """One pass gives both: who needs entropies gets the old log-probabilities for nothing."""
    scored = learner.score(batch, rows_B, ("logprob", "entropy"))
    return {"old_logprob": scored["logprob"], "entropy": scored["entropy"]}


# quantity -> how the learner computes it for the rows marked
COMPUTED: dict[str, Callable[[Learner, Batch, Tensor], dict[str, Tensor]]] = {
    "old_logprob": lambda learner, batch, rows_B: {"old_logprob": learner.score(batch, rows_B)["logprob"]},
    "entropy": _policy_pass,
    "ref_logprob": lambda learner, batch, rows_B: {"ref_logprob": learner.score_reference(batch, rows_B)},
}


class Clock:
    """Seconds of each phase of a step."""

    def __init__(self):
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        return {f"seconds/{phase}": seconds for phase, seconds in self._seconds.items()}


def peak_memory() -> float:
    """GiB: most that this process ever held, of the GPU's memory where it has one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def describe(scored: Sequence[Rollout]) -> dict[str, float]:
    """What was sampled: reward, its components, length, truncation."""
    rated = [r.reward for r in scored if r.reward is not None]
    out = {
        "reward/mean": fmean(rated),
        "reward/std": float(torch.tensor(rated).std(correction=0)),
        "correct": fmean(r.correct for r in scored),
        "response/length": fmean(len(r.response.ids) for r in scored),
        "response/length_max": max(len(r.response.ids) for r in scored),
        "response/truncated": fmean(r.response.truncated for r in scored),
        "response/unrated": len(scored) - len(rated),
        "tokens/generated": sum(len(r.response.ids) for r in scored),
    }
    for name in scored[0].rewards:
        values = [r.rewards[name] for r in scored if r.rewards[name] is not None]
        if values:
            out[f"rewards/{name}"] = fmean(values)
    return out


def signal(
    scored: Sequence[Rollout], taken: Sequence[Rollout], credits: Sequence[Credited], update: dict[str, float]
) -> dict[str, int]:
    """Of the generated tokens, how many carry gradient and what took the rest; clipping is the last."""
    generated = sum(len(r.response.ids) for r in scored)
    unrated = sum(len(r.response.ids) for r in taken if r.reward is None)
    left_out = generated - sum(len(r.response.ids) for r in taken)
    out = {}
    for credited in credits:
        prefix, name = "signal", ""
        if len(credits) > 1:
            prefix, name = f"signal/{credited.objective.name}", f"{credited.objective.name}/"
        clipped = round(update.get(f"{name}clipped", 0.0) * credited.signal.carrying)
        out[f"{prefix}/generated"] = generated
        out[f"{prefix}/carrying"] = credited.signal.carrying - clipped
        losses = {"dynamic_sampling": left_out, "unrated": unrated, **credited.signal.taken, "clipped": clipped}
        out |= {f"{prefix}/taken/{link}": count for link, count in losses.items()}
    return out
