"""User code is tried in a copy of the process, which it may take down."""

import ctypes
import os
import sys
import threading
import time

import pytest

from align.system import rehearsal
from align.system.rehearsal import rehearse


@pytest.mark.parametrize(
    "step, how",
    [
        (lambda: os._exit(0), "its process left with exit code 0"),
        (lambda: os._exit(7), "its process left with exit code 7"),
        (lambda: ctypes.string_at(0), "its process died of SIGSEGV"),
        (lambda: os.abort(), "its process died of SIGABRT"),
        (lambda: os.kill(os.getpid(), 9), "its process died of SIGKILL; was the machine out of memory?"),
    ],
)
def test_what_ends_the_process_is_told(step, how):
    assert rehearse(step) == how


@pytest.mark.parametrize("step", [lambda: 1, lambda: 1 / 0, lambda: sys.exit(0), lambda: print("y" * 10**6)])
def test_what_does_not_end_it_has_no_trace(step, capfd):
    assert rehearse(step) is None
    assert capfd.readouterr() == ("", "")


def test_what_takes_long_is_left_to_be_seen(monkeypatch):
    monkeypatch.setattr(rehearsal, "REHEARSAL_S", 0.5)
    held = threading.Lock()
    held.acquire()
    start = time.monotonic()
    assert rehearse(held.acquire) is None
    assert time.monotonic() - start < 5


def test_a_program_that_outlives_the_copy_holds_nothing_up(monkeypatch):
    monkeypatch.setattr(rehearsal, "REHEARSAL_S", 1.0)

    def step():
        if not os.fork():
            time.sleep(3)
            os._exit(0)
        os._exit(4)

    start = time.monotonic()
    rehearse(step)
    assert time.monotonic() - start < 3
