"""Run each reward function in a process of its own, limited in time and memory, and started again after it died."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Iterable
from pathlib import Path

from align.config.recipe import RewardFunction, RewardLimits
from align.scoring.process import ANSWER, READY, Failure, Ready, Value, too_slow
from align.system.failure import LONGEST
from align.system.pipe import TRANSFER_S
from align.system.server import Server

GRACE_S = 1.0  # for an async function's process to report itself which rows took too long

STREAK = 3  # failed calls in a row after which a process that has worked is made again: it may leak


class RewardError(RuntimeError):
    """A reward function cannot be loaded or called, or it fails on too many rows."""


class Worker:
    """The process that calls one reward function. Only the thread that made it may use it.

    `log` is the file that gets what the function prints; without one that is dropped.
    """

    def __init__(self, reward: RewardFunction, limits: RewardLimits, log: Path | None = None):
        self.reward, self.limits, self.log = reward, limits, log
        self._server = Server("align.scoring.process", self._first, READY, log)
        self._asked: Failure | tuple[int, float] | None = None  # why it was not sent, or (rows, when it is too late)
        self._streak, self._worked = 0, False  # failed calls in a row; whether this process has answered any
        self._server.start()

    @property
    def ready(self) -> Ready | None:
        """How the function is called; None as long as it is not loaded."""
        return self._server.ready

    def wait(self) -> None:
        """Wait until the function is loaded. Raises `RewardError` where it cannot be."""
        failure = self._server.load()
        if failure:
            raise RewardError(f"reward {self.reward.name!r} cannot be loaded: {failure.why}")

    def ask(self, message: bytes, rows: int) -> None:
        """Start a call; `message` is the pickled (arguments, rows). `answer` gives the result."""
        if self._asked:  # its answer was never read, and would come before the next one
            self.close()
        self._asked = self._server.load() or self._server.send(message, TRANSFER_S)
        if self._asked is None:
            seconds = self.limits.seconds
            if self.ready.is_async:
                seconds = seconds * math.ceil(rows / self.limits.concurrency) + GRACE_S
            self._asked = rows, time.monotonic() + seconds

    def answer(self) -> list[Value] | Failure:
        """Wait for the call that was started: one value a row, or the failure of the whole call."""
        asked, self._asked = self._asked, None
        found = asked if isinstance(asked, Failure) else self._values(*asked)
        failures = [found] if isinstance(found, Failure) else [v for v in found if isinstance(v, Failure)]
        failed = isinstance(found, Failure) or len(failures) == len(found)
        self._streak = self._streak + 1 if failed else 0
        self._worked = self._worked or not failed
        if any(one.out_of_memory for one in failures) or (self._worked and self._streak >= STREAK):
            self.close()
        if self._server.process is None:
            self._server.start()  # it loads meanwhile
        return found

    def close(self) -> None:
        """End the process, and those that it started in its group."""
        self._server.close()
        self._asked = None

    def _first(self) -> bytes:
        """The first message to a new process, of which nothing is known yet."""
        self._streak, self._worked = 0, False
        return pickle.dumps((self.reward, self.limits))

    def _values(self, rows: int, until: float) -> list[Value] | Failure:
        """The values of the call that was sent."""
        late = too_slow(self.limits.seconds).why
        found = self._server.receive(ANSWER, until, LONGEST * 20 * (rows + 1), late)
        if isinstance(found, list) and len(found) != rows:
            self.close()
            return Failure(f"its process sent {len(found)} values for {rows} rows")
        return found


def close(workers: Iterable[Worker]) -> None:
    """End the processes of all workers."""
    for worker in workers:
        worker.close()
