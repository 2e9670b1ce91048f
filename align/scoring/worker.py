"""Run each reward function in a process of its own, limited in time and memory, and started again after it died."""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing import Pipe

from align.config.recipe import RewardFunction, RewardLimits
from align.scoring.process import Failure, Ready, Value, too_slow

START_S = 300  # to import the function's module

GRACE_S = 1  # for an async function's process to report itself which rows took too long


class RewardError(RuntimeError):
    """A reward function cannot be loaded or called, or it fails on too many rows."""


class Worker:
    """The process that calls one reward function. Only the thread that made it may use it."""

    def __init__(self, reward: RewardFunction, limits: RewardLimits):
        self.reward, self.limits = reward, limits
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            serve = f"from align.scoring.process import serve; serve({theirs.fileno()}, {os.getpid()})"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", serve],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # what a reward prints would tear the progress bar
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a group to kill, and no Ctrl-C of the terminal
            )
        self._is_async: bool | None = None  # not known before it is ready
        self._asked: tuple[float, float] | None = None  # (when, limit in seconds)
        self._send(pickle.dumps((self.reward, self.limits)))

    def wait(self) -> None:
        """Wait until the function is loaded. Raises `RewardError` where it cannot be."""
        if self._is_async is not None:
            return
        found = self._receive(START_S, Failure(f"importing it took longer than {START_S} s"))
        if not isinstance(found, Ready):
            raise RewardError(f"reward {self.reward.name!r} cannot be loaded: {found.why}")
        self._is_async = found.is_async

    def ask(self, message: bytes, rows: int) -> None:
        """Start a call; `message` is the pickled (arguments, rows). `answer` gives the result."""
        self.wait()
        seconds = self.limits.seconds
        if self._is_async:
            seconds = seconds * math.ceil(rows / self.limits.concurrency) + GRACE_S
        self._asked = time.monotonic(), seconds
        self._send(message)

    def answer(self) -> list[Value] | Failure:
        """Wait for the call that was started: one value a row, or the failure of the whole call."""
        asked, seconds = self._asked
        found = self._receive(asked + seconds - time.monotonic(), too_slow(self.limits.seconds))
        if self._process.returncode is not None:
            self._start()
        return found

    def _send(self, message: bytes) -> None:
        with suppress(ConnectionError):  # it died since the last call, which `_receive` will see
            self._pipe.send_bytes(message)

    def _receive(self, seconds: float, late: Failure) -> Ready | list[Value] | Failure:
        """Return what the process sends within `seconds`; else end it, and return why it sent nothing."""
        try:
            if self._pipe.poll(max(0.0, seconds)):
                return self._pipe.recv()
        except (EOFError, ConnectionError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)  # it may be on its way out
            self.close()
            return Failure(_end(self._process.returncode))
        self.close()
        return late

    def close(self) -> None:
        """End the process, and those that it started in its group."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._pipe.close()


def close(workers: Iterable[Worker]) -> None:
    """End the processes of all workers."""
    for worker in workers:
        worker.close()


def _end(code: int) -> str:
    """How a process ended, by its exit code."""
    if code >= 0:
        return f"its process left with exit code {code}"
    hint = "; was the machine out of memory?" if code == -signal.SIGKILL else ""
    return f"its process died of {signal.Signals(-code).name}{hint}"
