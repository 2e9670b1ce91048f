"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path


class DiskError(OSError):
    """A file of the run that cannot be written, mostly because the disk is full."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises `DiskError`, with its place and a way on, for what the system refuses."""
    try:
        yield
    except OSError as error:
        what = f"{path}: cannot be written: {error.strerror or error}"
        raise DiskError(f"{what}; make room, then go on with --resume") from error


def write_whole(path: Path, text: str) -> None:
    """Under its name there is the old text or the new one, never a part. Raises `DiskError`."""
    work = path.with_name(f".{path.name}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        work.write_text(text)
        work.replace(path)


def to_disk(path: Path) -> None:
    """Wait until a file or the names in a folder would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digests(folder: Path) -> dict[str, str]:
    """{path below the folder: SHA-256} of all files in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
        return dict(zip([str(p.relative_to(folder)) for p in paths], pool.map(_digest, paths), strict=True))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
