"""Limit how long a block may run, so that nothing hangs: it raises, or ends the process where nothing else can."""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

GRACE = 10.0  # seconds that an overdue call has to return to Python, where it can raise


class DeadlineError(RuntimeError):
    """A generation or a sync took longer than the recipe allows."""


@contextmanager
def deadline(what: str, seconds: float) -> Iterator[None]:
    """Raise `DeadlineError` inside the block once it has run for `seconds`; `what` names it in the message.

    The block ends with this error even where a library on the way turned it into another one or swallowed it.
    An exception only comes up between two Python instructions. A call that stays in C++, such as a collective that the
    other ranks never join, gets `GRACE` seconds more; then the stacks of all threads are printed and the process ends
    with code 1, whereupon the launcher ends the other ranks. In the main thread only; blocks do not nest.
    """
    error = DeadlineError(
        f"{what}: not done after {seconds:g} s, so it counts as hung; where it is only slow, raise sampling.deadline_s"
    )

    overdue = threading.Event()

    def late(*_) -> None:
        overdue.set()
        raise error

    told = threading.Timer(seconds + GRACE, print, [f"{error}; it hangs here:"], {"file": sys.stderr, "flush": True})
    told.daemon = True
    before = signal.signal(signal.SIGALRM, late)
    try:
        told.start()
        # ends the process from a thread that needs no lock of the interpreter
        faulthandler.dump_traceback_later(seconds + GRACE + 1, exit=True)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        told.cancel()
        signal.signal(signal.SIGALRM, before)
        if overdue.is_set():
            raise error
