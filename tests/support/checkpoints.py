"""Checkpoints without an engine."""

from pathlib import Path

from accelerate import Accelerator

from align.checkpoint import checkpoint, resume
from align.checkpoint.checkpoint import State
from align.config.recipe import Run
from align.system.node import Node


class Learner:
    """Writes a file as large as it is told."""

    def __init__(self, size=1000):
        self.accelerator, self.size = Accelerator(cpu=True), size

    def save(self, folder):
        (folder / "weights").write_bytes(b"w" * self.size)


def state(step: int, processes: int = 1) -> State:
    return State(step, [{"seen": [0.1, 1 / 3]}], processes, [(0, "recipe")])


ALONE = Node()


def saved(run: Path, *steps: int, node: Node = ALONE, processes: int = 1) -> list[Path]:
    for step in steps:
        checkpoint.save(run / "checkpoints", Learner(), state(step, processes), node)
    return [run / "checkpoints" / f"step_{step}" for step in steps]


def find(path: Path, out: Path | str = "elsewhere", steps=10):
    return resume.find(Run(out=str(out), steps=steps, resume=str(path)))


def find_on_all(path: Path, nodes: dict, out: Path, steps=10):
    return resume.find_on_all(Run(out=str(out), steps=steps, resume=str(path)), nodes)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())
