"""Build C++ extensions under a lock that ends with its owner: torch's own is a file, which a killed process leaves
behind, and every later build then waits for it without a word."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

TELL_S = 5.0  # seconds of waiting after which it is told, once

QUIET_S = 600.0  # seconds without a change in its folder after which a build that cannot be seen from here is over


class Baton(FileBaton):
    """torch's baton, taken from whoever is gone.

    `try_acquire` waits and then always has it, so that a build whose owner dies meanwhile is done again; one that is
    done costs a look. Processes of this library wait for a lock of the system, those of others for the file.
    """

    def __init__(self, lock_file_path: str, wait_seconds: float = 0.1, warn_after_seconds: float | None = None):
        super().__init__(lock_file_path, wait_seconds, warn_after_seconds)
        self.path = Path(lock_file_path)
        self._own = FileLock(f"{lock_file_path}.align")

    def try_acquire(self) -> bool:
        """Wait for the baton, and take it."""
        telling = _tell_late(self.path)
        while True:
            try:
                self._own.acquire(timeout=1.0)
                break
            except Timeout:
                telling(builder(self.path) or "another process")
        while not super().try_acquire():
            if who := builder(self.path):
                telling(who)
                time.sleep(self.wait_seconds)
            else:
                self.path.unlink(missing_ok=True)
        self.path.write_text(f"{os.getpid()} {platform.node()}")
        return True

    def release(self) -> None:
        """Give it back."""
        with suppress(FileNotFoundError):  # somebody took the file away by hand
            super().release()
        self._own.release()


def install() -> None:
    """Have torch build its extensions, those of DeepSpeed among them, under this baton."""
    cpp_extension.FileBaton = Baton


def builder(lock: Path) -> str | None:
    """Say who builds in the folder of torch's lock file; None where nobody does any more."""
    try:
        pid, _, host = lock.read_text().partition(" ")  # empty where a process without this library made it
        foreign = host not in ("", platform.node()) or lock.stat().st_uid != os.getuid()
        changed = max(path.stat().st_mtime for path in lock.parent.iterdir())
    except (FileNotFoundError, UnicodeDecodeError):  # given back meanwhile
        return None if not lock.exists() else "another process"
    if foreign:
        who = f"process {pid} on {host}" if host else "a process of another user"
        return who if time.time() - changed < QUIET_S else None
    return next((f"process {process.pid}" for process in _builders(lock.resolve())), None)


def _builders(lock: Path) -> Iterator[psutil.Process]:
    """The processes that have the lock open, and every ninja in its folder: it may outlive the one that started it."""
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.Error):
            ninja = (process.info["name"] or "").startswith("ninja") and Path(process.cwd()) == lock.parent
            if ninja or any(file.path == str(lock) for file in process.open_files()):
                yield process


def _tell_late(lock: Path):
    """Return a function that tells who is waited for, once, when it has been called for `TELL_S` seconds."""
    start, told = time.monotonic(), False

    def tell(who: str) -> None:
        nonlocal told
        if not told and time.monotonic() - start > TELL_S and os.environ.get("LOCAL_RANK", "0") == "0":
            told = True
            print(f"waiting for {who}, which builds {lock.parent.name} (its lock: {lock})", flush=True)

    return tell
