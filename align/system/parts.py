"""A file of lines that grows for long: once it is large it becomes a numbered part, and a new one begins.

`samples.jsonl` is the newest; before it come `samples.00001.jsonl`, `samples.00002.jsonl`, ..., the oldest first. Their
lines in this order are those of one file. Older parts may be moved away.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path

from align.system import files

StepOf = Callable[[bytes], int | None]  # the step of a line; None where it is none


def parts(path: Path) -> list[Path]:
    """The files that there are, the oldest first; `path` is the newest one's name."""
    return [*_older(path).values(), *([path] if path.exists() else [])]


def size_of(path: Path) -> int:
    """The bytes of all parts; 0 where there is none."""
    return sum(part.stat().st_size for part in parts(path))


def lines(there: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """(`file:line`, line) of files, one after the other."""
    for path in there:
        with path.open("rb") as file:  # not splitlines, which also splits within a text, at U+2028
            for number, line in enumerate(file, 1):
                yield f"{path}:{number}", line


def with_steps(path: Path, steps: Container[int], step_of: StepOf) -> list[Path]:
    """The parts that may have lines of these steps: none has any behind the first of the part that follows it."""
    there = parts(path)
    firsts = [first_step(part, step_of) for part in there]
    spans = zip(there, firsts, [*firsts[1:], None], strict=True)
    return [
        part
        for part, first, behind in spans
        if first is None or behind is None or any(step in steps for step in range(first, behind + 1))
    ]


def first_step(path: Path, step_of: StepOf) -> int | None:
    """The step of the first line of a file."""
    with path.open("rb") as file:
        return step_of(file.readline())


def turn(path: Path, size: int) -> None:
    """Make a part of the newest file where it has so many bytes. It is on the disk then. Raises `DiskError`.

    A rename is all that happens, so a process that is killed leaves either state, and both are whole.
    """
    if path.exists() and path.stat().st_size >= size:
        with files.writing(path):
            files.to_disk(path)
            path.rename(_named(path, max(_older(path), default=0) + 1))
            files.to_disk(path.parent)


def cut(path: Path, step: int, step_of: StepOf) -> None:
    """Cut lines, whose steps ascend, behind the last one of a step up to `step`.

    Read from the end up to that line, not as a whole: what is damaged before is found by who reads it. A part that is
    cut is the newest one then, so that what follows is divided as if nothing had been cut.
    """
    while there := parts(path):
        newest = there[-1]
        first = first_step(newest, step_of)
        end = 0 if first is not None and first > step else _end(newest, step, step_of)
        with files.writing(path):
            if end == 0 and len(there) > 1:
                newest.unlink()
                continue
            if end < newest.stat().st_size:
                os.truncate(newest, end)
            newest.rename(path)
        return


def _older(path: Path) -> dict[int, Path]:
    """{number: part} without the newest file, ascending."""
    name = re.compile(re.escape(path.stem) + r"\.(\d{5,})" + re.escape(path.suffix))
    found = {int(m[1]): p for p in path.parent.glob(f"{path.stem}.*{path.suffix}") if (m := name.fullmatch(p.name))}
    return dict(sorted(found.items()))


def _named(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.{number:05}{path.suffix}")


def _end(path: Path, step: int, step_of: StepOf) -> int:
    """The byte behind the last line of a step up to `step`; 0 where there is none."""
    wanted = (end for end, line in files.backwards(path) if (of := step_of(line)) is not None and of <= step)
    return next(wanted, 0)
