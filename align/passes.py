"""Passes over a model for what links and losses ask for, and the clock that counts the seconds of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from align.batch import Batch
from align.credit import Annotate
from align.learner import Learner
from align.models import Speaker


class Passes:
    """Runs a model when a link or a loss asks for what only a model knows, once for each row and quantity."""

    def __init__(self, learner: Learner, old_from: str, clock: Clock):
        self._learner, self._old_from, self._clock = learner, old_from, clock
        self.work: dict[str, int] = {}  # rows and tokens that went through a model, for the log

    def of_batch(self) -> Annotate:
        """For one batch and whatever links make of it; what a batch brings along is not computed."""
        done: dict[str, tuple[Tensor, Tensor]] = {}  # quantity -> (rows that have it, values)

        def annotate(batch: Batch, names: Sequence[str], rows_B: Tensor, reader: str) -> Batch:
            for name in names:
                sampled = name == "old_logprob" and self._old_from == "sampler" and batch.sampler_logprob is not None
                if sampled:
                    batch = replace(batch, old_logprob=batch.sampler_logprob)
                elif name in COMPUTED and (name in done or getattr(batch, name) is None):
                    self._compute(batch, name, rows_B, done)
                    batch = replace(batch, **{name: done[name][1]})
                else:
                    batch.need(name, reader)
            return batch

        return annotate

    def _compute(self, batch: Batch, name: str, rows_B: Tensor, done: dict[str, tuple[Tensor, Tensor]]) -> None:
        nothing = torch.zeros_like(rows_B), torch.zeros_like(batch.weight)
        missing = rows_B & ~done.setdefault(name, nothing)[0]
        if not missing.any():
            return
        who, reads = COMPUTED[name]
        with self._clock(f"pass/{name}"):
            found = self._learner.score(batch, missing, tuple(reads.values()), who)
        for quantity, read in reads.items():
            have, old = done.get(quantity, nothing)
            done[quantity] = have | missing, torch.where(missing[:, None], found[read], old)
        for unit, count in (("rows", missing.sum()), ("tokens", batch.mask[missing].sum())):
            key = f"pass/{name}/{unit}"
            self.work[key] = self.work.get(key, 0) + int(count)


# quantity -> whose pass gives it, and what else the same pass gives for nothing: {field of the batch: what is read}
COMPUTED: dict[str, tuple[Speaker, dict[str, str]]] = {
    "old_logprob": ("policy", {"old_logprob": "logprob"}),
    "entropy": ("policy", {"old_logprob": "logprob", "entropy": "entropy"}),
    "value": ("policy", {"value": "value"}),
    "ref_logprob": ("reference", {"ref_logprob": "logprob"}),
    "guide_logprob": ("guide", {"guide_logprob": "logprob"}),
    "reward_mask": ("reference", {"reward_mask": "activation_mask", "kl_mask": "activation_mask"}),
}
COMPUTED["kl_mask"] = COMPUTED["reward_mask"]


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
