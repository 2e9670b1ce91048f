"""Keep what a process of user code prints in a file of its own, up to a size."""

from __future__ import annotations

from io import RawIOBase
from pathlib import Path
from threading import Thread

MOST = 10 * 2**20  # bytes of a file; what comes behind them is dropped, so that a flood of output fills no disk

DROPPED = b"\n[more was printed; it is not kept]\n"


def keep(stream: RawIOBase, path: Path) -> None:
    """Append what a stream gives to `path` until it ends, in a thread of its own, and close it."""
    Thread(target=_copy, args=(stream, path), daemon=True).start()


def _copy(stream: RawIOBase, path: Path) -> None:
    with stream:
        while part := stream.read(2**16):
            _append(path, part)


def _append(path: Path, part: bytes) -> None:
    """Append a part, of which only what fits is kept. The file is opened anew, since its folder may be renamed."""
    try:
        size = path.stat().st_size if path.exists() else 0
        if size < MOST:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(part if size + len(part) <= MOST else part[: MOST - size] + DROPPED)
    except OSError:  # a full disk ends no run for the sake of what user code prints
        return
