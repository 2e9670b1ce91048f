"""A process that serves calls of user code: started, waited for, asked, ended, and started again after it died."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from align.system.child import end, spawn
from align.system.failure import LONGEST, Failure
from align.system.line import Line, Lost
from align.system.pipe import TRANSFER_S
from align.system.rehearsal import how_it_ended

START_S = 300.0  # to import the user's module

RESTART_S = 30.0  # to import it again where that was quick; else three times what it took


class Server:
    """The process in which `module` serves. Only the thread that made it may use it.

    `first` makes the message that it gets first; it answers it with a value of the type `ready`, which has the
    `seconds` that loading took, or with a `Failure`. For `log` and `environ` see `spawn`.
    """

    def __init__(
        self,
        module: str,
        first: Callable[[], bytes],
        ready: TypeAdapter,
        log: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ):
        self._how, self._first, self._kind = (module, log, environ), first, ready
        self.ready: Any = None  # None as long as user code is not loaded
        self.process: subprocess.Popen | None = None  # None where there is none to ask
        self.line: Line | None = None
        self._start_s = START_S

    def start(self) -> None:
        """Start the process, which begins to load. Where the system refuses, `load` tries again."""
        self._began = time.monotonic()
        try:
            self.process, pipe = spawn(*self._how)
        except (OSError, RuntimeError) as error:  # no files, processes or threads are left
            self.close()
            self._refused = Failure(f"its process cannot be started: {error}")
        else:
            self.line = Line(pipe, self._ended)
            self._refused = self.send(self._first(), TRANSFER_S)

    def load(self) -> Failure | None:
        """Wait until user code is loaded, in a process that is started where there is none; why it is not."""
        if self.ready:
            return None
        if self.process is None:
            self.start()
        late = f"importing it took longer than {self._start_s:g} s"
        found = self._refused or self.receive(self._kind, self._began + self._start_s, LONGEST * 1000, late)
        if isinstance(found, Failure):
            self.close()
            return found
        self.ready = found
        self._start_s = min(START_S, max(RESTART_S, 3 * found.seconds))
        return None

    def send(self, message: bytes, seconds: float) -> Failure | None:
        """Send a request; where that fails, end the process and return why."""
        try:
            return self.line.send(message, seconds)
        except Lost as lost:
            self.close()
            return Failure(str(lost))

    def receive(self, kind: TypeAdapter, until: float, longest: int, late: str) -> Any:
        """Return the answer to the newest request, if it begins by then; else end the process, and return why not."""
        try:
            return self.line.receive(kind, until, longest, late)
        except Lost as lost:
            self.close()
            return Failure(str(lost))

    def close(self) -> None:
        """End the process, and those that it started in its group."""
        if self.line:
            self.line.pipe.close()
        if self.process:
            end(self.process)
        self.line = self.process = self.ready = None

    def _ended(self) -> str:
        """Why the process reads and sends no more."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1)  # it may be on its way out
        code = self.process.returncode
        return "its process closed the pipe to the trainer" if code is None else how_it_ended(code)
