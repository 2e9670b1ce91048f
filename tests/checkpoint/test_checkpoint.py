"""Checkpoints on disk: what is intact, how many stay, and what a full disk leaves."""

import resource
import signal
from contextlib import contextmanager

import pytest
from support.checkpoints import Learner, find, names, saved, state

from align.checkpoint import checkpoint
from align.checkpoint.checkpoint import CheckpointError


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
        checkpoint.save(tmp_path / "checkpoints", Learner(size=100_000), state(4))
    assert names(tmp_path) == ["step_2"] and find(tmp_path).checkpoint == good
