"""A limit for all of a program's memory together, where this process may make control groups (cgroup v2)."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from secrets import token_hex

ROOT = Path("/sys/fs/cgroup")
JOIN = 'echo $$ > "$0/cgroup.procs" && exec "$@"'  # before the program's first process is made


@cache
def parent() -> Path | None:
    """Where a group beside this process's own can be made and joined; None where that is not so, as in most containers.

    A group that has processes may have no groups with limits in it, so it is one beside.
    """
    with suppress(OSError, subprocess.CalledProcessError):
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        own = next((line.removeprefix("0::/") for line in groups if line.startswith("0::")), "")
        beside = (ROOT / own).parent
        if "memory" in (beside / "cgroup.subtree_control").read_text().split():
            with _made(beside, 2**28) as group:
                subprocess.run(["sh", "-c", JOIN, str(group), "true"], check=True, stderr=subprocess.DEVNULL)
            return beside
    return None


@contextmanager
def limited(size: int) -> Iterator[list[str]]:
    """How a command begins whose processes, files in memory included, hold no more than `size` bytes; empty where there
    are no groups."""
    beside = parent()
    if beside is None:
        yield []
        return
    with _made(beside, size) as group:
        yield ["sh", "-c", JOIN, str(group)]


@contextmanager
def _made(beside: Path, size: int) -> Iterator[Path]:
    """A group, until its processes have ended."""
    group = beside / f"align-code-{os.getpid()}-{token_hex(4)}"
    group.mkdir()
    try:
        (group / "memory.max").write_text(str(size))
        (group / "memory.oom.group").write_text("1")
        with suppress(FileNotFoundError):  # a kernel without swap
            (group / "memory.swap.max").write_text("0")
        yield group
    finally:
        for _ in range(50):  # its last processes may be on their way out
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.01)
