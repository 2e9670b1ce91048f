"""Checkpoints on disk: what is intact, how many stay, and what a full disk leaves."""

import resource
import signal
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from support.checkpoints import Learner, find, names, saved, state

from align.checkpoint import checkpoint
from align.checkpoint.checkpoint import CheckpointError
from align.objectives import gfpo
from align.objectives.gfpo import AdaptiveK
from align.system.node import Node


def test_what_is_read_is_what_was_written(tmp_path):
    (folder,) = saved(tmp_path, 4)
    assert checkpoint.read(folder) == state(4) and checkpoint.damage(folder) is None
    assert names(tmp_path) == ["step_4"]


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
        checkpoint.save(tmp_path / "checkpoints", Learner(size=100_000), state(4), Node())
    assert names(tmp_path) == ["step_2"] and find(tmp_path).checkpoint == good


def test_stray_files_are_no_checkpoints_and_stay(tmp_path):
    (one,) = saved(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    (folder / "step_9").write_text("a file")
    (folder / ".step_8").write_text("a file")
    (folder / "step_x").mkdir()
    (folder / "step_").mkdir()
    (one / ".DS_Store").touch()
    assert checkpoint.newest_first(folder) == [one] and find(tmp_path).checkpoint == one
    checkpoint.tidy(folder, 1)
    checkpoint.set_later_aside(folder, 0)
    assert names(tmp_path) == [".step_8", "replaced_1_step_1", "step_", "step_9", "step_x"]


def test_a_state_from_before_the_recipe_was_kept_is_read(tmp_path):
    old = '{"step": 4, "links": [{"seen": [0.1]}], "processes": 1, "lineage": [[0, "recipe"]]}'
    (tmp_path / "state.json").write_text(old)
    assert checkpoint.read(tmp_path) == checkpoint.State(4, [{"seen": [0.1]}], 1, [(0, "recipe")])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": 1, "links": [], "lineage": 3}', '{"lineage": [], "x": 1}'])
def test_a_state_of_something_else_is_named(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"state\.json: is no state of a checkpoint"):
        checkpoint.read(tmp_path)


def test_a_checkpoint_that_cannot_be_opened_is_damaged(tmp_path):
    (folder,) = saved(tmp_path, 1)
    (folder / checkpoint.SUMS).unlink()
    (folder / checkpoint.SUMS).mkdir()
    assert "files that cannot be read" in checkpoint.damage(folder)


class Loading:
    """A learner of one layer that loads what it is told."""

    def __init__(self, width=3, processes=1, stage=0, fails=None, settings="lr"):
        self.accelerator = SimpleNamespace(num_processes=processes)
        optimizer = SimpleNamespace(param_groups=[{"lr": 1, "params": []}])
        module = torch.nn.Linear(2, width)
        self.engine = SimpleNamespace(module=module, zero_optimization_stage=lambda: stage, optimizer=optimizer)
        self.fails, self.settings = fails, settings

    def load(self, folder):
        if self.fails:
            raise self.fails
        self.engine.optimizer.param_groups = [{self.settings: 1, "params": []}]


def written(folder, learner):
    (folder / "state.json").write_text(checkpoint.state_at(2, learner, (), [(0, "r")], {"run": {"seed": 0}}).to_json())


@pytest.mark.parametrize(
    "other, told",
    [
        (dict(processes=2), "written by 1 processes and this run has 2; launch as many"),
        (dict(stage=3), "written with ZeRO stage 0 and this run has 3; use its launch file"),
        (dict(width=5), r"2 of 2 trained parameters are others \(bias has shape \[3\] there and \[5\] here\); resume"),
        (dict(fails=RuntimeError("Error(s):\n\tsize mismatch")), r"model or optimiser: Error\(s\): size mismatch"),
        (dict(fails=ValueError("a parameter group")), "does not fit the model or optimiser: a parameter group"),
        (dict(settings="momentum"), "was written with another optimiser"),
    ],
)
def test_what_does_not_fit_is_named_with_what_differs(tmp_path, other, told):
    written(tmp_path, Loading())
    checkpoint.load(tmp_path, Loading(), ())
    with pytest.raises(CheckpointError, match=told):
        checkpoint.load(tmp_path, Loading(**other), ())


def test_another_objective_is_named(tmp_path):
    written(tmp_path, Loading())
    adaptive = gfpo(k=AdaptiveK(very_hard=4, hard=4, medium=3, easy=2))
    with pytest.raises(CheckpointError, match="another objective; resume with the same recipe"):
        checkpoint.load(tmp_path, Loading(), (adaptive,))
    state = checkpoint.State(2, [{"nothing": "it knows"}], 1, [])
    (tmp_path / "state.json").write_text(state.to_json())
    with pytest.raises(CheckpointError, match="another objective; resume with the same recipe"):
        checkpoint.load(tmp_path, Loading(), (adaptive,))
