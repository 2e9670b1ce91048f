"""Clear the shared memory that a killed engine left on this machine.

On a CPU the ranks of one engine meet in a segment whose name tells the ranks and not the run, so what a killed run
leaves behind makes the next one fail (errno 17).
"""

from __future__ import annotations

import glob
import os
from pathlib import Path

import psutil
import torch.distributed as dist

FOLDER = Path("/dev/shm")


def clear(tensor_parallel: int) -> None:
    """Remove the segments of this rank's group that belong to this user and that no process has open. Collective."""
    first = dist.get_rank() // tensor_parallel * tensor_parallel  # rank of the group: it clears for all of them
    ranks = "-".join(str(rank) for rank in range(first, first + tensor_parallel))
    for path in left_over(f"-[{ranks}]-cpushm") if dist.get_rank() == first else ():
        path.unlink(missing_ok=True)
    dist.barrier()  # before any of them makes its own


def left_over(name: str, folder: Path = FOLDER) -> list[Path]:
    """Files in a folder with `name` in theirs that belong to this user and that no process has mapped."""
    own = [path for path in folder.glob(f"*{glob.escape(name)}*") if path.stat().st_uid == os.getuid()]
    return [path for path in own if not _mapped(path)] if own else []


def _mapped(path: Path) -> bool:
    """Whether a process of this user has a file in its memory."""
    for process in psutil.process_iter():
        try:
            if any(segment.path == str(path) for segment in process.memory_maps()):
                return True
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue  # it has ended, or is another user's
    return False
