"""Lock a folder for as long as its owner lives, and say who that is."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from align.system import files

LOCK, OWNER = ".lock", ".lock.json"  # the lock, which the system lets go with its owner; who that is

PATIENCE_S = 1.0  # somebody may only be looking whether the lock is free


class HeldError(RuntimeError):
    """A folder is in use by another live process."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made where it is missing, inside the block. It stays with the folder where
    that is renamed. Raises `HeldError` where another process holds it, and `DiskError`."""
    with files.writing(folder / LOCK):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=PATIENCE_S)
        except Timeout as error:
            raise HeldError(_in_use(folder)) from error
    try:
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        files.write_whole(folder / OWNER, json.dumps({"pid": os.getpid(), "host": platform.node(), "since": since}))
        yield
    finally:
        lock.release()


def check_free(folder: Path) -> None:
    """Raise `HeldError` where a live process holds the lock of a folder. Makes nothing."""
    if not (folder / LOCK).is_file() or not os.access(folder / LOCK, os.W_OK):
        return
    try:
        with FileLock(folder / LOCK).acquire(timeout=PATIENCE_S):
            pass
    except Timeout as error:
        raise HeldError(_in_use(folder)) from error


def _in_use(folder: Path) -> str:
    """Say who holds a folder, as far as that is written."""
    try:
        owner = json.loads((folder / OWNER).read_text())
        who = f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, TypeError, KeyError):  # it has only just got the lock
        who = "a process that has not said which"
    return f"{folder} is in use by another run: {who}; wait for its end, stop it, or name another folder"
