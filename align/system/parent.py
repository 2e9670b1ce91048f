"""What a process has to do with the one that started it: it ends with it, or says the last word."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from align.system.text import for_terminal

PR_SET_PDEATHSIG = 1  # of sys/prctl.h

LAUNCHER = "ALIGN_LAUNCHER"  # the process id of the launcher that started this process, where one did


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


def say_last(text: str) -> None:
    """Print on stderr why this process ends: now, and again below what a launcher prints of its own."""
    text = for_terminal(text)
    print(text, file=sys.stderr, flush=True)
    if launcher := os.environ.get(LAUNCHER):
        say_after(int(launcher), text)


def say_after(pid: int, text: str) -> None:
    """Print a text on stderr once another process has ended, in a process of its own. Returns at once.

    `accelerate launch` prints a traceback of its own when one of its processes fails, below what that process said.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as told:  # longer than a command may be
        told.write(text)
        told.seek(0)
        subprocess.Popen(
            [sys.executable, "-P", "-m", "align.system.parent", str(pid)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"},
            start_new_session=True,  # Ctrl-C and the launcher end the others
            stdin=told,
            stdout=subprocess.DEVNULL,
        )


def wait_for(pid: int) -> None:
    """Wait until a process that need not be a child has ended. One that nobody has asked about yet has ended too."""
    try:
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.2)
    except psutil.NoSuchProcess:
        pass


if __name__ == "__main__":
    wait_for(int(sys.argv[1]))
    print(sys.stdin.read(), file=sys.stderr)
