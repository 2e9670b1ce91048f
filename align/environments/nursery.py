"""Instances of an environment, each in a process of its own that is limited in time and memory, asked side by side."""

from __future__ import annotations

import pickle
import resource
import selectors
import socket
import subprocess
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from align.environments.contract import (
    ANSWERS,
    LOADED,
    LONGEST_ANSWER,
    Answer,
    Build,
    Built,
    Describe,
    Description,
    Environment,
    Limits,
    Request,
)
from align.environments.process import DISMISSED, HIRED, SECONDS, Dismiss, Hire
from align.system.failure import Failure, too_slow
from align.system.line import Line, Lost
from align.system.pipe import TRANSFER_S
from align.system.rehearsal import how_it_ended
from align.system.server import RESTART_S, START_S, Server

SAME = {"PYTHONHASHSEED": "0"}  # sets of texts have one order in all runs


class EnvironmentFailed(RuntimeError):
    """An environment cannot be loaded, made or shown to a model."""


class Nursery:
    """Makes processes of instances. One thread at a time may use it, and none that ends before the run: the processes
    that a thread starts end with it.

    `log` is the file that gets what the environment prints; without one that is dropped.
    """

    def __init__(self, environment: Environment, limits: Limits, log: Path | None = None):
        self.environment, self.limits = environment, limits
        self.build_s = START_S  # within which an instance has to be made
        self._instances: list[Instance] = []
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # there may be thousands, each with a socket
        first = pickle.dumps((environment, limits))
        self._server = Server("align.environments.process", lambda: first, LOADED, log, SAME)
        self._server.start()

    def wait(self) -> Description:
        """Wait until the environment is loaded, make one instance, and say what it offers.

        Raises `EnvironmentFailed` where that cannot be done.
        """
        (found,) = ask([(self.instance(0), Describe())])
        self.instance(0).close()  # what it imported to describe itself no other has
        if isinstance(found, Failure):
            raise EnvironmentFailed(f"environment {self.environment.name!r} cannot be used: {found.why}")
        return found

    def instance(self, index: int) -> Instance:
        """The instance of a number from 0 on, which is made when it is first asked, and then reused."""
        while len(self._instances) <= index:
            self._instances.append(Instance(self))
        return self._instances[index]

    def hire(self) -> tuple[int, socket.socket, subprocess.Popen] | Failure:
        """(process id, socket, the process that it is a copy of) of a new process, or why there is none."""
        failure = self._server.load()
        if failure:
            return failure
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            return Failure(f"its process cannot be started: {error}")
        with theirs:
            found = self._server.send(pickle.dumps(Hire()), TRANSFER_S) or self._hand(theirs)
        if isinstance(found, Failure):
            ours.close()
            return found
        return found, ours, self._server.process

    def dismiss(self, instances: Iterable[Instance], wait_s: float = 0.0) -> None:
        """End processes of instances, and note the code with which each had ended by itself."""
        mine = [one for one in instances if one.process is not None and one.copied is self._server.process]
        if mine:  # else they ended with the process that they are copies of
            request, late = Dismiss([one.process for one in mine], wait_s), wait_s * len(mine) + TRANSFER_S
            found = self._server.send(pickle.dumps(request), TRANSFER_S) or self._server.receive(
                DISMISSED, time.monotonic() + late, 100 * (1 + len(mine)), "ending instances took too long"
            )
            codes = [None] * len(mine) if isinstance(found, Failure) else found
            for one, code in zip(mine, codes, strict=True):
                one.code = code

    def close(self) -> None:
        """End all processes, and those that they started in their groups."""
        self.dismiss(self._instances)
        self._server.close()
        for one in self._instances:
            one.forget()

    def _hand(self, theirs: socket.socket) -> int | Failure:
        """Pass a socket to the process that copies itself; the id of the copy."""
        try:
            socket.send_fds(self._server.line.pipe, [b"!"], [theirs.fileno()])
        except OSError as error:
            self._server.close()
            return Failure(f"its process cannot be started: {error}")
        return self._server.receive(HIRED, time.monotonic() + TRANSFER_S, 10000, "its process was not made in time")


class Instance:
    """One instance of an environment. It is lost with the first failure, and made anew for the next request."""

    def __init__(self, nursery: Nursery):
        self.nursery = nursery
        self.process: int | None = None  # None where there is none
        self.copied: subprocess.Popen | None = None  # the process that it is a copy of
        self.code: int | None = None  # with which it ended by itself
        self._line: Line | None = None
        self._asked: Request = Build()  # the newest request, first that it be made

    def send(self, request: Request) -> float | Failure:
        """Send a request, or where there is no instance that it be made: when it is too late for an answer, of
        `time.monotonic`, or why it was not sent."""
        if self.process is None:
            found = self.nursery.hire()
            if isinstance(found, Failure):
                return found
            self.process, pipe, self.copied = found
            self._line, request = Line(pipe, self._ended), Build()
        self._asked = request
        try:
            self._line.send(pickle.dumps(request), TRANSFER_S)
        except Lost as lost:
            return self._failed(Failure(str(lost)))
        ours = isinstance(request, Build | Describe)  # the latter imports transformers
        return time.monotonic() + (self.nursery.build_s if ours else self.nursery.limits.seconds)

    def receive(self, until: float) -> Answer | Failure:
        """The answer to the newest request, if it begins by then."""
        late = too_slow(self.nursery.limits.seconds, SECONDS).why
        if isinstance(self._asked, Build):
            late = f"it took longer than {self.nursery.build_s:g} s"
        try:
            found = self._line.receive(ANSWERS[type(self._asked)], until, LONGEST_ANSWER, late)
        except Lost as lost:
            return self._failed(Failure(str(lost)))
        if isinstance(found, Failure):  # what it is in now, nobody knows
            return self._failed(found)
        if isinstance(found, Built):
            self.nursery.build_s = min(START_S, max(RESTART_S, 3 * found.seconds))
        return found

    def fileno(self) -> int:
        """The file descriptor at which the answer arrives."""
        return self._line.pipe.fileno()

    def close(self) -> None:
        """End its process, and those that it started in its group."""
        self.nursery.dismiss([self])
        self.forget()

    def forget(self) -> None:
        """Close the pipe to a process that was ended."""
        if self._line:
            self._line.pipe.close()
        self.process = self._line = None

    def _failed(self, failure: Failure) -> Failure:
        """The failure of the newest request, which ends the instance; that of making it says so."""
        self.close()
        return replace(failure, why=f"in __init__: {failure.why}") if isinstance(self._asked, Build) else failure

    def _ended(self) -> str:
        """Why its process reads and sends no more."""
        self.code = None
        self.nursery.dismiss([self], wait_s=1.0)
        self.process = None
        return "its process closed the pipe to the trainer" if self.code is None else how_it_ended(self.code)


def ask(requests: Sequence[tuple[Instance, Request]]) -> list[Answer | Failure]:
    """Ask instances, each once, side by side, also of several environments; their answers, in the order of requests.

    As many of an environment work at once as its limits say, so that the seconds of one are not waiting for others.
    """
    found: dict[int, Answer | Failure] = {}
    waiting: dict[Nursery, deque[int]] = {}  # rows that are not asked yet
    for row, (instance, _) in enumerate(requests):
        waiting.setdefault(instance.nursery, deque()).append(row)
    until: dict[int, float] = {}  # {row: when it is too late for its answer}
    with selectors.DefaultSelector() as selector:

        def send(row: int) -> None:
            instance, request = requests[row]
            sent = instance.send(request)
            if isinstance(sent, Failure):
                found[row] = sent
            else:
                until[row] = sent
                selector.register(instance, selectors.EVENT_READ, row)

        while any(waiting.values()) or until:
            for row in _free(requests, waiting, until):
                send(row)
            for row in _due(selector, until):
                instance, _ = requests[row]
                selector.unregister(instance)
                answer = instance.receive(until.pop(row))
                if isinstance(answer, Built):
                    send(row)
                else:
                    found[row] = answer
    return [found[row] for row in range(len(requests))]


def _free(
    requests: Sequence[tuple[Instance, Request]], waiting: Mapping[Nursery, deque[int]], until: Mapping[int, float]
) -> Iterator[int]:
    """Take the waiting rows that may work beside those that do."""
    working = Counter(requests[row][0].nursery for row in until)
    for nursery, rows in waiting.items():
        for _ in range(min(len(rows), nursery.limits.at_once - working[nursery])):
            yield rows.popleft()


def _due(selector: selectors.BaseSelector, until: Mapping[int, float]) -> list[int]:
    """Wait for rows whose answers begin; those for which it is too late, where none does."""
    if not until:
        return []
    ready = selector.select(max(0.0, min(until.values()) - time.monotonic()))
    return sorted(key.data for key, _ in ready) or [row for row, end in until.items() if end <= time.monotonic()]
