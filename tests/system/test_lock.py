"""The lock of a folder: one owner, told by name; it ends with its owner and stays with the folder."""

import os
import signal
import subprocess
import sys

import pytest
from support.paths import PYTHONPATH

from align.system import lock
from align.system.lock import HeldError, check_free, held

HOLD = """
import sys, time
from pathlib import Path
from align.system.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    """Another process that holds the lock of `run`."""
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_who_holds_it_is_told(tmp_path, owner):
    told = rf"run is in use by another run: process {owner.pid} on \S+, since 20\d\d-.* UTC; .*name another folder"
    with pytest.raises(HeldError, match=told), held(tmp_path / "run"):
        pass
    with pytest.raises(HeldError, match=told):
        check_free(tmp_path / "run")


@pytest.mark.parametrize("harm", ["", "{", "[]", '{"pid": 1}'])
def test_an_owner_that_cannot_be_read_holds_it_all_the_same(tmp_path, owner, harm):
    (tmp_path / "run" / lock.OWNER).write_text(harm)
    with pytest.raises(HeldError, match="in use by another run"):
        check_free(tmp_path / "run")


def test_it_ends_with_its_owner(tmp_path, owner):
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    check_free(tmp_path / "run")
    with held(tmp_path / "run"):
        pass


def test_it_moves_with_its_folder_and_both_can_be_held(tmp_path):
    with held(tmp_path / "run"):
        (tmp_path / "run").rename(tmp_path / "run.1")
        check_free(tmp_path / "run")
        with held(tmp_path / "run"), pytest.raises(HeldError):
            check_free(tmp_path / "run.1")


def test_looking_makes_nothing(tmp_path):
    check_free(tmp_path / "run")
    check_free(tmp_path)
    assert not list(tmp_path.iterdir())
