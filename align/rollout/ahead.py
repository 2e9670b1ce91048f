"""Sample the next step's rollouts while this step is updated (`sampling.staleness: 1`).

What is sampled goes to the journal, where the next step finds it as a resumed run would. So there is nothing to hand
over, and a run that is killed in between goes on from what is on disk.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from align.system.clock import Clock
from align.system.deadline import deadline


class SamplesAhead(Protocol):
    """A source that can sample for the step to come."""

    def sample_ahead(self, step: int) -> None:
        """Sample this rank's responses for a step, counted from 0, with the policy of the step before, into the
        journal. Nothing in it is collective."""
        ...


@dataclass
class Ahead:
    """Samples for the step to come, in a thread of its own, from `begin` until `wait` returns.

    It is one thread for the whole run: processes of environments that it starts end with it.
    """

    sources: Sequence[SamplesAhead]
    steps: int  # of the run; nothing is sampled behind the last one
    deadline_s: float  # that `wait` waits at most
    _begun: SimpleQueue[tuple[int, Future[float]]] = field(default_factory=SimpleQueue, init=False)
    _seconds: Future[float] | None = field(default=None, init=False)  # that the sampling takes

    def __post_init__(self) -> None:
        # a thread that never keeps the process from ending, as one of an executor would
        Thread(target=self._work, name="samples ahead", daemon=True).start()

    def begin(self, step: int) -> None:
        """Sample for a step, counted from 0, with the policy that the engine has now."""
        if step < self.steps:
            self._seconds = Future()
            self._begun.put((step, self._seconds))

    def wait(self, clock: Clock) -> dict[str, float]:
        """Wait until the step is sampled; the engine may get another policy then. Metrics of what that took; {} where
        nothing was begun.

        Raises what the sampling raised, and `DeadlineError`.
        """
        found, self._seconds = self._seconds, None
        if found is None:
            return {}
        start = time.perf_counter()
        with clock("generate"), deadline("generation", self.deadline_s):
            seconds = found.result()
        waited = time.perf_counter() - start
        return {"overlap/seconds": seconds, "overlap/hidden": max(0.0, 1 - waited / seconds)}

    def _work(self) -> None:
        while True:
            self._sample(*self._begun.get())

    def _sample(self, step: int, seconds: Future[float]) -> None:
        start = time.perf_counter()
        try:
            for source in self.sources:
                source.sample_ahead(step)
        except BaseException as error:  # raised again by `wait`
            seconds.set_exception(error)
        else:
            seconds.set_result(time.perf_counter() - start)
