"""Run each reward function in a process of its own, limited in time and memory, and started again after it died."""

from __future__ import annotations

import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from align.config.recipe import RewardFunction, RewardLimits
from align.scoring.output import keep
from align.scoring.pipe import TRANSFER_S, receive, send
from align.scoring.process import ANSWER, LONGEST, READY, Failure, Ready, Value, too_slow
from align.system.rehearsal import how_it_ended

START_S = 300.0  # to import the function's module

RESTART_S = 30.0  # to import it again where that was quick; else three times what it took

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
        self.ready: Ready | None = None  # None as long as the function is not loaded
        self._process: subprocess.Popen | None = None  # None where there is none to ask
        self._pipe: socket.socket | None = None
        self._start_s = START_S
        self._number = 0  # of the newest request
        self._asked: Failure | tuple[int, float] | None = None  # why it was not sent, or (rows, when it is too late)
        self._streak, self._worked = 0, False  # failed calls in a row; whether this process has answered any
        self._start()

    def wait(self) -> None:
        """Wait until the function is loaded. Raises `RewardError` where it cannot be."""
        failure = self._load()
        if failure:
            raise RewardError(f"reward {self.reward.name!r} cannot be loaded: {failure.why}")

    def ask(self, message: bytes, rows: int) -> None:
        """Start a call; `message` is the pickled (arguments, rows). `answer` gives the result."""
        if self._asked:  # its answer was never read, and would come before the next one
            self.close()
        self._asked = self._load() or self._send(message, TRANSFER_S)
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
        if self._process is None:
            self._start()  # it loads meanwhile
        return found

    def close(self) -> None:
        """End the process, and those that it started in its group."""
        if self._pipe:
            self._pipe.close()
        if self._process:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # the system may hold it for a while
                self._process.wait(TRANSFER_S)
        self._pipe = self._process = self.ready = self._asked = None

    def _start(self) -> None:
        """Start the process, which begins to load the function. Where the system refuses, `_load` tries again."""
        self._began, self._streak, self._worked = time.monotonic(), 0, False
        try:
            self._spawn()
        except (OSError, RuntimeError) as error:  # no files, processes or threads are left
            self.close()
            self._refused = Failure(f"its process cannot be started: {error}")
        else:
            self._refused = self._send(pickle.dumps((self.reward, self.limits)), TRANSFER_S)

    def _spawn(self) -> None:
        """Start the process with a socket to it. Raises `OSError` and `RuntimeError`."""
        self._pipe, theirs = socket.socketpair()
        serve = f"from align.scoring.process import serve; serve({theirs.fileno()}, {os.getpid()})"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-u", "-c", serve],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if self.log else subprocess.DEVNULL,  # it would tear the progress bar
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group to kill, and no Ctrl-C of the terminal
                bufsize=0,
            )
        if self.log:
            keep(self._process.stdout, self.log)

    def _load(self) -> Failure | None:
        """Wait until the function is loaded, in a process that is started where there is none; why it is not."""
        if self.ready:
            return None
        if self._process is None:
            self._start()
        late = Failure(f"importing it took longer than {self._start_s:g} s")
        found = self._refused or self._receive(READY, self._began + self._start_s, LONGEST * 1000, late)
        if isinstance(found, Failure):
            self.close()
            return found
        self.ready = found
        self._start_s = min(START_S, max(RESTART_S, 3 * found.seconds))
        return None

    def _values(self, rows: int, until: float) -> list[Value] | Failure:
        """The values of the call that was sent."""
        found = self._receive(ANSWER, until, LONGEST * 20 * (rows + 1), too_slow(self.limits.seconds))
        if isinstance(found, list) and len(found) != rows:
            self.close()
            return Failure(f"its process sent {len(found)} values for {rows} rows")
        return found

    def _send(self, message: bytes, seconds: float) -> Failure | None:
        """Send a request; where that fails, end the process and return why."""
        self._number += 1
        try:
            send(self._pipe, self._number, message, seconds)
        except TimeoutError:
            self.close()
            return Failure(f"its process did not read the call within {seconds:g} s")
        except OSError:
            return self._ended()
        return None

    def _receive(self, kind: TypeAdapter, until: float, longest: int, late: Failure) -> Ready | list[Value] | Failure:
        """Return the answer to the newest request, if it begins by then; else end the process, and return why not."""
        try:
            number, body = receive(self._pipe, max(0.0, until - time.monotonic()), longest)
            if number == self._number:
                return kind.validate_json(body, strict=True)
            why = Failure(f"its process answered call {number}, and call {self._number} was asked")
        except TimeoutError:
            why = late
        except (EOFError, OSError):
            return self._ended()
        except ValidationError:
            why = Failure("its process sent something else than an answer")
        except ValueError as error:
            why = Failure(f"its process sent no answer: {error}")
        self.close()
        return why

    def _ended(self) -> Failure:
        """Why the process reads and sends no more."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)  # it may be on its way out
        code = self._process.returncode
        self.close()
        return Failure("its process closed the pipe to the trainer" if code is None else how_it_ended(code))


def close(workers: Iterable[Worker]) -> None:
    """End the processes of all workers."""
    for worker in workers:
        worker.close()
