"""The lock of torch's builds: whoever is gone loses it, whoever lives is waited for and told."""

import os
import platform
import subprocess
import sys
import threading
import time

import pytest
from support.paths import PYTHONPATH
from torch.utils import cpp_extension

from align.system import baton
from align.system.baton import Baton

TORCHS = """
import os, sys, time
os.open(sys.argv[1], os.O_CREAT | os.O_EXCL)
print("held", flush=True)
time.sleep(60)
"""
OURS = """
import sys, time
from align.system.baton import Baton
Baton(sys.argv[1]).try_acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def lock(tmp_path, monkeypatch):
    monkeypatch.setattr(baton, "TELL_S", 0.5)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return tmp_path / "shm_comm" / "lock"


@pytest.fixture
def start(lock):
    """Start a process that takes the lock."""
    started = []

    def start(script):
        lock.parent.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(lock)], env=environment, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("script", [TORCHS, OURS])
def test_a_killed_owner_keeps_nobody_waiting(lock, start, script):
    owner = start(script)
    owner.kill()
    owner.wait()
    assert lock.exists()
    mine, before = Baton(str(lock)), time.monotonic()
    assert mine.try_acquire() and time.monotonic() - before < 5
    assert lock.read_text() == f"{os.getpid()} {platform.node()}"
    mine.release()
    assert not lock.exists()


@pytest.mark.parametrize("script", [TORCHS, OURS])
def test_a_live_owner_is_waited_for_and_told_and_when_it_dies_it_is_our_turn(lock, start, script, capsys):
    owner = start(script)
    threading.Timer(2.5, owner.kill).start()
    mine, before = Baton(str(lock)), time.monotonic()
    assert mine.try_acquire() and time.monotonic() - before > 2
    mine.release()
    told = capsys.readouterr().out
    assert f"waiting for process {owner.pid}, which builds shm_comm (its lock: {lock})\n" == told


def test_an_empty_lock_that_nobody_holds_is_no_lock(lock):
    lock.parent.mkdir()
    lock.touch()
    assert baton.builder(lock) is None and Baton(str(lock)).try_acquire()


def test_a_ninja_that_outlived_its_owner_is_waited_for(lock):
    lock.parent.mkdir()
    lock.touch()
    ninja = lock.with_name("ninja")
    ninja.symlink_to("/bin/sleep")
    process = subprocess.Popen([ninja, "60"], cwd=lock.parent)
    try:
        until = time.monotonic() + 5
        while baton.builder(lock) != f"process {process.pid}":
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert baton.builder(lock) is None


def test_a_build_of_another_machine_is_over_when_its_folder_is_quiet(lock, monkeypatch):
    lock.parent.mkdir()
    lock.write_text("12 elsewhere")
    assert baton.builder(lock) == "process 12 on elsewhere"
    monkeypatch.setattr(baton, "QUIET_S", 0.2)
    time.sleep(0.3)
    assert baton.builder(lock) is None


def test_a_lock_taken_away_by_hand_does_no_harm(lock):
    lock.parent.mkdir()
    mine = Baton(str(lock))
    assert mine.try_acquire()
    lock.unlink()
    mine.release()


SOURCE = "int one() { return 1; }\n"


def test_torch_builds_under_it(lock, monkeypatch):
    monkeypatch.setattr(cpp_extension, "FileBaton", cpp_extension.FileBaton)
    baton.install()
    taken = []

    def build(*_, **__):
        taken.append(lock.exists())

    monkeypatch.setattr(cpp_extension, "_write_ninja_file_and_build_library", build)
    monkeypatch.setattr(cpp_extension, "_import_module_from_library", lambda *_: "module")
    lock.parent.mkdir()
    (lock.parent / "x.cpp").write_text(SOURCE)
    lock.touch()  # as a killed build left it
    built = cpp_extension.load("x", [str(lock.parent / "x.cpp")], build_directory=str(lock.parent))
    assert built == "module" and taken == [True] and not lock.exists()
