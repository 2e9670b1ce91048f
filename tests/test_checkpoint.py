"""Checkpoints on disk: what is intact, which is used, how many stay, and what a full disk leaves."""

import resource
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from accelerate import Accelerator

from align.checkpoint import checkpoint, resume
from align.checkpoint.checkpoint import CheckpointError, State
from align.config.recipe import Run


class Learner:
    """Writes a file as large as it is told."""

    def __init__(self, size=1000):
        self.accelerator, self.size = Accelerator(cpu=True), size

    def save(self, folder):
        (folder / "weights").write_bytes(b"w" * self.size)


def state(step: int) -> State:
    return State(step, [{"seen": [0.1, 1 / 3]}], 1, [(0, "recipe")])


def saved(run: Path, *steps: int) -> list[Path]:
    for step in steps:
        checkpoint.save(run / "checkpoints", Learner(), state(step))
    return [run / "checkpoints" / f"step_{step}" for step in steps]


def find(path: Path, out: Path | str = "elsewhere", steps=10):
    return resume.find(Run(out=str(out), steps=steps, resume=str(path)))


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_what_is_read_is_what_was_written(tmp_path):
    (folder,) = saved(tmp_path, 4)
    assert checkpoint.read(folder) == state(4) and checkpoint.damage(folder) is None
    assert names(tmp_path) == ["step_4"]


def flip(path: Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", ["engine/weights", "state.json", "SHA256SUMS"])
def test_the_newest_intact_checkpoint_is_used(harm, name, tmp_path):
    older, newer = saved(tmp_path, 9, 10)  # by number, not by name
    assert find(tmp_path).checkpoint == newer
    harm(newer / name)
    found = find(tmp_path)
    assert found.checkpoint == older and found.step == 9
    (passed_over,) = found.passed_over
    assert passed_over.startswith(f"{newer}: ")
    assert name in passed_over or name == "SHA256SUMS"  # which may be wrong about any file
    with pytest.raises(CheckpointError, match="step_10: "):
        find(newer)
    harm(older / name)
    with pytest.raises(CheckpointError, match="no checkpoint is intact"):
        find(tmp_path)


def test_a_cut_line_of_the_checksums_does_not_pass(tmp_path):
    (folder,) = saved(tmp_path, 1)
    lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    (folder / "SHA256SUMS").write_text("".join(lines[:-1]))
    assert "is cut" in checkpoint.damage(folder)


def test_keep_bounds_their_number_and_leftovers_go(tmp_path):
    (tmp_path / "checkpoints/.step_1/engine").mkdir(parents=True)
    saved(tmp_path, 8, 9, 10, 11)
    checkpoint.tidy(tmp_path / "checkpoints", 2)
    assert names(tmp_path) == ["step_10", "step_11"]


def test_going_on_from_an_earlier_one_keeps_what_is_replaced(tmp_path):
    saved(tmp_path, 2, 4, 6)
    checkpoint.set_later_aside(tmp_path / "checkpoints", 2)
    assert names(tmp_path) == ["replaced_1_step_4", "replaced_1_step_6", "step_2"]
    assert find(tmp_path).step == 2


@contextmanager
def largest_file(size: int):
    """The system refuses to write more than this into one file, as it refuses everything on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_cannot_be_written_leaves_the_last_good_one(tmp_path):
    (good,) = saved(tmp_path, 2)
    with largest_file(10_000), pytest.raises(CheckpointError, match="step_4: cannot be written.*too large.*--resume"):
        checkpoint.save(tmp_path / "checkpoints", Learner(size=100_000), state(4))
    assert names(tmp_path) == ["step_2"] and find(tmp_path).checkpoint == good


def test_a_run_does_not_go_on_from_behind_its_end(tmp_path):
    saved(tmp_path, 10)
    with pytest.raises(CheckpointError, match="10 steps and run.steps is 9"):
        find(tmp_path, steps=9)


def test_where_there_is_nothing_to_go_on_from(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find(tmp_path)
    assert find(tmp_path, out=tmp_path) == resume.Origin(in_place=True)  # killed before its first checkpoint


def test_a_run_that_went_on_elsewhere_and_was_killed_at_once_goes_on_from_the_same(tmp_path):
    (origin,) = saved(tmp_path / "one", 3)
    (tmp_path / "two").mkdir()
    (tmp_path / "two/config.yaml").write_text(f"run: {{resume: {origin}}}")
    found = find(tmp_path / "two", out=tmp_path / "two")
    assert found.checkpoint == origin and found.in_place
    assert not find(tmp_path / "one", out=tmp_path / "two").in_place


def test_lineage_tells_recipes_apart_and_not_how_a_run_is_watched():
    def lineage(origin=(), step=0, processes=1, torch="2", **changed):
        recipe = {"optim": {"lr": 1}, "eval": {"samples": 1}, "run": {"seed": 0, "steps": 4}} | changed
        return resume.lineage(resume.Origin(step=step, lineage=origin), recipe, {"torch": torch}, processes)

    start = lineage()
    assert start == lineage(eval={"samples": 9}, hub="a/b", run={"seed": 0, "steps": 9, "out": "there"})
    assert lineage(tuple(start), 4) == start
    for changed in ({"optim": {"lr": 2}}, {"run": {"seed": 1}}, {"processes": 2}, {"torch": "3"}):
        assert lineage(**changed) != start
        (first, second) = lineage(tuple(start), 4, **changed)
        assert first == start[0] and second[0] == 4


def test_a_resume_tells_which_versions_differ(tmp_path):
    (folder,) = saved(tmp_path, 2)
    (tmp_path / "versions.json").write_text('{"torch": "1", "peft": "3"}')
    origin = find(tmp_path, out=tmp_path)
    text = resume.explain(origin, tmp_path, 5, resume.versions_then(origin, tmp_path), {"torch": "2", "peft": "3"})
    assert f"{folder}: 2 steps done, 5 rollouts" in text
    assert "torch was 1, is 2" in text and "peft" not in text
