"""Python that takes too long raises; what Python cannot interrupt ends the process."""

import contextlib
import signal
import subprocess
import sys
import time

import pytest

from align.system.deadline import DeadlineError, deadline


def test_overdue_python_raises_where_it_stands():
    start = time.monotonic()
    late = pytest.raises(DeadlineError, match=r"generation: not done after 0\.2 s.*sampling\.deadline_s")
    with late, deadline("generation", 0.2):
        time.sleep(20)
    assert time.monotonic() - start < 5


def test_what_is_in_time_leaves_no_alarm_behind():
    before = signal.getsignal(signal.SIGALRM)
    with deadline("sync", 0.2):
        pass
    with pytest.raises(ZeroDivisionError), deadline("sync", 0.2):
        raise ZeroDivisionError
    time.sleep(0.4)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0 and signal.getsignal(signal.SIGALRM) is before


def wrapped():
    try:
        time.sleep(20)
    except RuntimeError as error:
        raise ValueError("the compiler failed") from error


def swallowed():
    with contextlib.suppress(RuntimeError):
        time.sleep(20)


@pytest.mark.parametrize("library", [wrapped, swallowed])
def test_a_library_that_catches_everything_does_not_hide_the_deadline(library):
    with pytest.raises(DeadlineError, match="sync check: not done"), deadline("sync check", 0.2):
        library()


HANGS = """
import os, sys
import torch.distributed as dist
from align.system import deadline
deadline.GRACE = 0.5
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
if sys.argv[2] == "1":
    sys.stdin.read()  # never joins the others
with deadline.deadline("sync", 0.5):
    dist.barrier()
"""


def test_a_collective_that_never_comes_ends_the_process(tmp_path):
    """The main thread stays in C++, where no signal handler runs."""
    commands = [[sys.executable, "-c", HANGS, str(tmp_path / "store"), rank] for rank in ("0", "1")]
    away = subprocess.Popen(commands[1], stdin=subprocess.PIPE)
    try:
        done = subprocess.run(commands[0], capture_output=True, text=True, timeout=100)
    finally:
        away.kill()
        away.communicate()
    assert done.returncode == 1
    assert "sync: not done after 0.5 s" in done.stderr and "in barrier" in done.stderr
