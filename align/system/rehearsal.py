"""Try user code in a copy of this process first, which it may take down."""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress

from align.system.parent import die_with_parent

REHEARSAL_S = 10.0  # longer than this nothing is tried: what it does is then left to be seen


def rehearse(step: Callable[[], object]) -> str | None:
    """Return how a copy of this process ended in the middle of `step`; None where it came through.

    It may have raised: then it does so again here. None also for a step that takes longer than `REHEARSAL_S`. What it
    prints is dropped.
    """
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that threads are not copied; a copy that hangs is ended
        copy = os.fork()
    if copy == 0:
        _try(step, theirs)
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as pipe:
        said = bool(select.select([pipe], [], [], REHEARSAL_S)[0])
        came_through = not said or pipe.read(1) == b"."
    if came_through:
        with suppress(ProcessLookupError):
            os.kill(copy, signal.SIGKILL)
    _, status = os.waitpid(copy, 0)
    if came_through:
        return None
    return how_it_ended(os.waitstatus_to_exitcode(status))


def how_it_ended(code: int) -> str:
    """Say how a process ended, by its exit code; below 0 that is a signal."""
    if code >= 0:
        return f"its process left with exit code {code}"
    hint = "; was the machine out of memory?" if code == -signal.SIGKILL else ""
    names = {known.value: known.name for known in signal.Signals}
    return f"its process died of {names.get(-code, f'signal {-code}')}{hint}"


def _try(step: Callable[[], object], pipe: int) -> None:
    """Run the step and end this process; a byte into the pipe says that it came through."""
    die_with_parent()
    faulthandler.disable()  # a crash here is told in one line
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    sys.stdout = sys.stderr = os.fdopen(nowhere, "w")
    with suppress(BaseException):  # whatever it raises it will raise again
        step()
    os.write(pipe, b".")
    os._exit(0)
