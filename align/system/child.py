"""Start a process that runs user code, limit it, and end it with all that it started."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from align.system.output import keep
from align.system.parent import die_with_parent
from align.system.pipe import TRANSFER_S

WITHHELD = ("ALIGN_SERVER_TOKEN",)  # variables that user code does not get: with it, it could change servers' weights


def spawn(
    module: str, log: Path | None, environ: Mapping[str, str] | None = None
) -> tuple[subprocess.Popen, socket.socket]:
    """Start an interpreter that runs `serve(pipe, parent)` of a module, and a socket to it.

    `log` is the file that gets what it prints; without one that is dropped. `environ` adds variables to its
    environment. Raises `OSError` and `RuntimeError` where the system refuses.
    """
    ours, theirs = socket.socketpair()
    serve = f"from {module} import serve; serve({theirs.fileno()}, {os.getpid()})"
    try:
        known = {name: value for name, value in os.environ.items() if name not in WITHHELD}
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-u", "-c", serve],
                env={**known, **(environ or {}), "PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if log else subprocess.DEVNULL,  # it would tear the progress bar
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group to kill, and no Ctrl-C of the terminal
                bufsize=0,
            )
        try:
            if log:
                keep(process.stdout, log)
        except RuntimeError:
            end(process)
            raise
    except (OSError, RuntimeError):
        ours.close()
        raise
    return process, ours


def end(process: subprocess.Popen) -> None:
    """End a process, and those that it started in its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # the system may hold it for a while
        process.wait(TRANSFER_S)


def connect(pipe: int, parent: int) -> socket.socket | None:
    """The socket to the trainer, in a process that `spawn` started; None where the trainer is gone already."""
    os.set_inheritable(pipe, False)
    die_with_parent()  # leaves no orphan, not even of a trainer that was killed
    return socket.socket(fileno=pipe) if os.getppid() == parent else None


def limit_memory(gib: float) -> None:
    """Limit the address space of this process and of those that it starts; none of them leaves a core file."""
    space = round(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
