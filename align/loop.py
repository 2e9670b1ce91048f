"""The one loop: sample, score, credit, update, sync. It runs any objective and knows none by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from align.credit import assign
from align.learner.learner import Learner, Outputs
from align.learner.passes import ForwardPasses
from align.metrics.step import peak_memory, rollout_metrics, signal_metrics
from align.rollout.ahead import Ahead
from align.rollout.sampler import Sampler
from align.rollout.sources import Source, SourceBatch
from align.rollout.sync_gate import rollout_gap
from align.system.clock import Clock

# of a step, as its metrics `seconds/...` name them
PHASES = ("generate", "environment", "score", "credit", "update", "sync", "proof")


@dataclass(frozen=True)
class StepRecord:
    """The batches that a step learned from, and its metrics."""

    batches: Sequence[SourceBatch]  # one a source
    metrics: dict[str, float]
    outputs: Sequence[Outputs] = ()  # of the policy at the first update, those of this rank's micro-batches


@dataclass(frozen=True)
class Loop:
    """Takes optimiser steps. All ranks run it side by side."""

    sources: Sequence[Source]
    learner: Learner
    sampler: Sampler | None  # None where no source samples
    updates_per_step: int
    old_logprob: str  # `sampler` or `trainer`: whose log-probabilities the ratio has
    ahead: Ahead | None = None  # samples the step to come while this one is updated; None with sampling.staleness: 0

    def step(self, step: int) -> StepRecord:
        """Sample, score, credit, update, sync: one optimiser step, counted from 0. Every rank runs it with its
        groups. Raises `RewardError`, `DeadlineError` and `SyncError`."""
        clock = Clock()
        forward = ForwardPasses(self.learner, self.old_logprob, clock)  # runs a model only when something asks
        # before the first update the policy is the old one: where there is one update, it gives that quantity itself
        given_by_update = ("old_logprob",) if self.updates_per_step == 1 else ()

        # 1. Sample and score: rollouts of prompts, or preference pairs. Each rank holds those of its own groups.
        collected = [source.collect(step, clock) for source in self.sources]
        if self.sampler:
            self.sampler.sleep()  # until the sync its memory is the trainer's
        if self.ahead:
            self.ahead.begin(step + 1)  # from the policy of now, for this step's is not there yet

        # 2. Credit. Each objective filters rows, assigns advantages and weighs tokens.
        batches = []
        for source, found in zip(self.sources, collected, strict=True):
            annotate = forward.for_batch({name for objective in source.objectives for name in objective.reads})
            with clock("credit"):
                credited = [assign(o, found.batch, annotate, given_by_update) for o in source.objectives]
            batches.append(SourceBatch(found, credited))

        # 3. Update on the sum of all losses. Each is divided by its count over the whole batch.
        outputs: list[Outputs] = []
        with clock("update"):
            plan = self.learner.plan([batch.credited for batch in batches])
            updates = [self.learner.update(plan, step, outputs.append)]
            updates += [self.learner.update(plan, step) for _ in range(self.updates_per_step - 1)]
        update = {**updates[-1], "skipped": sum(one["skipped"] for one in updates)}

        # 4. Sync. The sampler must have had the old policy; it gets the new one, and must score the same tokens alike.
        synced = {}
        if self.ahead:
            synced = {**self.ahead.wait(clock), **rollout_gap(updates[0])}
        elif self.sampler:
            synced = self.sampler.agree(updates[0])
        if self.sampler:
            synced = {**synced, **self.sampler.sync(self.learner, clock)}

        metrics = {
            **rollout_metrics([batch.collected for batch in batches], step),
            **signal_metrics(batches, update),
            **update,
            **synced,
            **clock.seconds(),
            **forward.work,
            "memory/peak_gib": peak_memory(),
        }
        return StepRecord(batches, metrics, outputs)
