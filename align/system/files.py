"""Write files whole or not at all, read JSON lines, hash folders."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

BLOCK = 2**20  # bytes that are read at once

LOOKS = 64  # blocks of a large file that `glimpses` reads


class DiskError(OSError):
    """A file of the run cannot be written, mostly because the disk is full."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write inside the block into a `DiskError` that names the file and how to go on."""
    try:
        yield
    except DiskError:
        raise
    except (OSError, SafetensorError) as error:
        what = f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}"
        raise DiskError(f"{what}; make room, then go on with --resume") from error


def write_whole(path: Path, text: str) -> None:
    """Replace a file by a new text: under its name there is the old one or the new one, never a part.

    Raises `DiskError`.
    """
    work = path.with_name(f".{path.name}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        work.write_text(text, encoding="utf-8")
        work.replace(path)


def json_lines(lines: Iterable[bytes]) -> Iterator[Any]:
    """The value of each line that is not blank. Raises `ValueError` for the first line that is not UTF-8 or JSON."""
    return (value for _, value in numbered_json_lines(lines))


def finished_json_lines(path: Path) -> list[Any]:
    """The values of a file of lines that somebody may be writing; none where there is no file. A last line without its
    end is left out. Raises `ValueError` that names the file."""
    if not path.exists():
        return []
    try:
        with path.open("rb") as file:
            return list(json_lines(line for line in file if line.endswith(b"\n")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def numbered_json_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """(number, value) of each line that is not blank; the first line is 1. Raises as `json_lines`."""
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                yield number, json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number} is not text: {error}; save it as UTF-8") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        except (ValueError, RecursionError) as error:  # more digits or more depth than Python reads
            raise ValueError(f"line {number} cannot be read: {error}; shorten it") from error


def backwards(path: Path) -> Iterator[tuple[int, bytes]]:
    """(byte behind it, line) of each line of a file, the last one first; only what is asked for is read.

    A last line without its end is none.
    """
    with path.open("rb") as file:
        position, tail = file.seek(0, os.SEEK_END), b""
        while position:
            size = min(BLOCK, position)
            position -= size
            file.seek(position)
            tail = file.read(size) + tail
            first = tail.find(b"\n") + 1 if position else 0  # what is before it begins in an earlier block
            behind = max(first, tail.rfind(b"\n") + 1) if first or not position else 0
            while behind > first:
                begin = max(first, tail.rfind(b"\n", 0, behind - 1) + 1)
                yield position + behind, tail[begin:behind]
                behind = begin
            tail = tail[:first] if first else tail


def numbered(folder: Path) -> dict[int, Path]:
    """{N: path} of the folders `step_N` in a folder, newest first; whatever else is there is left alone."""
    found = {path.name.removeprefix("step_"): path for path in folder.glob("step_*") if path.is_dir()}
    return {int(n): found[n] for n in sorted(filter(str.isdecimal, found), key=int, reverse=True)}


def to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digests(folder: Path) -> dict[str, str]:
    """{path below the folder: SHA-256 in hex} of all files in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
        return dict(zip([str(p.relative_to(folder)) for p in paths], pool.map(_digest, paths), strict=True))


def glimpses(folder: Path) -> dict[str, str]:
    """{name: size and hash} of the files in a folder, not of hidden ones nor those in folders: of a large file `LOOKS`
    blocks all over it are read, which tells one model from another and not each broken byte."""
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    with ThreadPoolExecutor() as pool:
        return dict(zip([path.name for path in paths], pool.map(_glimpse, paths), strict=True))


def identity(path: Path) -> tuple[int, ...]:
    """What tells a file or folder from a copy of it, on whichever machine one looks."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _glimpse(path: Path) -> str:
    size, digest = path.stat().st_size, sha256()
    with path.open("rb") as file:
        for look in range(LOOKS):
            file.seek(look * max(BLOCK, (size - BLOCK) // (LOOKS - 1)))
            digest.update(file.read(BLOCK))
    return f"{size} bytes {digest.hexdigest()[:16]}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
