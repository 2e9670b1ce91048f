"""End a process together with the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1  # of sys/prctl.h


def die_with_parent() -> None:
    """Have the system kill this process when its parent ends, even by SIGKILL. Does nothing but on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_with_launcher() -> None:
    """End with `accelerate launch` where it is killed: its processes would go on beside the run that is resumed (Linux
    only). A process that was started by hand may outlive its shell. Call it first: a launcher that is gone sends no
    signal any more, and only one that init has taken over shows that."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    die_with_parent()
    if os.getppid() == 1 and not _is_python(1):
        sys.exit("the launcher of this process is gone, so it ends too")


def _is_python(process: int) -> bool:
    """Whether a process runs Python, as a launcher that is a container's first process does."""
    with suppress(OSError):
        command = Path(f"/proc/{process}/cmdline").read_bytes().partition(b"\0")[0]
        return os.path.basename(command).startswith(b"python")
    return True  # it cannot be known
