"""rewards.code: programs earn what their tests say, and reach nothing beyond their sandbox, whatever they try."""

import asyncio
import os
import pickle
import stat
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from support.deceptions import DECEPTIONS, DOUBLE, HOARDS
from support.questions import PROGRAM, QUESTIONS

from align.config.recipe import RewardFunction, RewardLimits
from align.scoring.worker import RewardError, Worker
from rewards import code
from rewards.sandbox import box, cgroup, seccomp

try:
    code.ready()
    missing = ""
except code.SandboxError as error:
    missing = str(error)

sandboxed = pytest.mark.skipif(bool(missing), reason=missing)
SOLVED = "def double(x):\n    return 2 * x\n"
TESTS = DOUBLE
ENDS = "assert done"  # of a program that `ending` made


def value(response, tests=TESTS, **arguments):
    (found,) = asyncio.run(code.passes(["q"], [response], [[1]], tests=[tests], **arguments))
    return found


def ending(program):
    """The program, which then says that it came to its end."""
    return f"{program}\ndone = True"


def all_end():
    """Waits until no program is left."""
    end = time.monotonic() + 20
    while any(box.LOADS in (p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < end
        time.sleep(0.05)


def fenced(program):
    return f"Here it is:\n\n```python\n{program}\n```\nIt works."


# ---- what a program earns


@sandboxed
def test_a_program_earns_what_its_tests_say():
    assert value(SOLVED) == value(fenced(SOLVED)) == 1.0
    assert value("def double(x):\n    return x * x") == 0.0  # right for 2 only
    assert value("no program at all") == value("") == value(fenced("def double(x:")) == 0.0


def test_a_row_without_tests_has_no_reward_and_broken_tests_are_no_wrong_answer():
    assert value(SOLVED, tests=None) is None
    with pytest.raises(ValueError, match="the row's tests are no Python: .*never closed"):
        value(SOLVED, tests="assert (double(2) == 4")
    with pytest.raises(ValueError, match="the row's tests are no Python"):
        value(SOLVED, tests=TESTS, entry_point=["double("])


@sandboxed
@pytest.mark.parametrize(
    "tests", ["", " \n", "# assert double(2) == 4", "pass", "'docs'", "import math", "assert True", "METADATA = {}"]
)
@pytest.mark.parametrize("program", [SOLVED, "raise SystemExit", "def double(x: "])
def test_tests_that_ask_nothing_have_no_reward(tests, program):
    assert value(program, tests) is None


@sandboxed
def test_tests_that_are_never_called_have_no_reward():
    assert value(SOLVED, "def check(candidate):\n    assert candidate(2) == 4") is None
    assert value(SOLVED, "def test_double():\n    assert double(2) == 4") is None


@sandboxed
def test_tests_that_fail_by_themselves_are_no_wrong_answer():
    with pytest.raises(ValueError, match="before they ask the program for anything: ModuleNotFoundError: .*numpy"):
        value(SOLVED, f"import numpy\n{TESTS}")


@sandboxed
def test_conversations():
    assert value([{"role": "assistant", "content": fenced(SOLVED)}]) == 1.0


@sandboxed
def test_rows_of_humaneval():
    check = "def check(candidate):\n    assert candidate(3) == 6\n"
    assert value(SOLVED, check, entry_point=["double"]) == 1.0
    assert value(SOLVED.replace("2", "3"), check, entry_point=["double"]) == 0.0
    assert value(SOLVED, check, entry_point=["other"]) == 0.0
    method = "class Solution:\n    def double(self, x): return 2 * x"
    assert value(method, check, entry_point=["Solution().double"]) == 1.0
    assert value("def sum(a, b): return a - b", "assert sum(3, 1) == 2", entry_point=["sum"]) == 1.0


@sandboxed
@pytest.mark.parametrize("tests", QUESTIONS)
def test_what_tests_can_ask(tests):
    assert value(PROGRAM, tests) == 1.0
    assert value("raise SystemExit", tests) == 0.0


@sandboxed
def test_the_standard_library_is_there_and_a_guarded_main_is_not_run():
    program = f"import json, math, collections, random, re, itertools, tempfile\n{SOLVED}\ntempfile.TemporaryFile()"
    assert value(f'{program}\nif __name__ == "__main__":\n    input()') == 1.0


def test_the_last_block_of_python_is_the_program():
    two = f"```python\nfirst\n```\nno:\n```py\n{SOLVED}```\nrun it:\n```bash\npython it.py\n```\n"
    assert code.program(two) == SOLVED
    assert code.program("```\nplain\n```") == "plain\n"
    assert code.program("x = 1") == "x = 1"


# ---- no way to pass but the tests


@sandboxed
@pytest.mark.parametrize(
    "leaves",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "print('started'); print('passed'); import os; os._exit(0)",
        "import os\nfor n in range(3, 20):\n    try: os.write(n, b'0' * 32)\n    except OSError: pass\nos._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import ctypes; ctypes.string_at(0)",
    ],
)
def test_leaving_early_is_not_passing(leaves):
    assert value(leaves) == value(f"{SOLVED}\n{leaves}") == 0.0
    late = "\n    ".join(["def double(x):", *leaves.splitlines(), "return 2 * x"])
    assert value(late, "try:\n    double(2)\nexcept Exception:\n    pass\nassert double(2)") == 0.0


@sandboxed
@pytest.mark.parametrize("name", DECEPTIONS)
def test_deceiving_the_tests_is_not_passing(name):
    program, tests, entry_point = DECEPTIONS[name]
    assert value(program, tests, entry_point=[entry_point]) == 0.0


# ---- the limits


@sandboxed
@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(1000)", "sum(range(10**15))"])
def test_a_program_that_does_not_end(program):
    start = time.monotonic()
    assert value(program, ENDS, seconds=1) == 0.0
    assert time.monotonic() - start < 10


@sandboxed
def test_memory_is_limited():
    assert value(ending("held = bytearray(100 * 2**20)"), ENDS, memory_mib=300) == 1.0
    assert value(ending("held = bytearray(400 * 2**20)"), ENDS, memory_mib=300) == 0.0


@sandboxed
@pytest.mark.parametrize("name", HOARDS)
def test_memory_is_not_held_elsewhere(name):
    limited = name != "files without content" or os.getuid() == 0 or cgroup.parent()
    assert value(HOARDS[name], ENDS, memory_mib=100, seconds=10) == (0.0 if limited else 1.0)


@sandboxed
@pytest.mark.skipif(cgroup.parent() is None, reason="no control groups can be made here")
def test_memory_is_limited_for_all_processes_together():
    held = "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        held = bytearray(80 * 2**20)"
    assert value(ending(f"{held}\n        time.sleep(9)\ntime.sleep(3)"), ENDS, memory_mib=100) == 0.0
    assert not list(cgroup.parent().glob(f"align-code-{os.getpid()}-*"))


@pytest.mark.parametrize("machine, there", [("x86_64", True), ("aarch64", True), ("riscv64", False)])
def test_a_filter_of_calls_is_there_for_usual_processors(monkeypatch, machine, there):
    monkeypatch.setattr(seccomp.platform, "machine", lambda: machine)
    assert seccomp.supported() == there
    assert any("memfd_create" in note for note in box.unlimited()) != there
    assert not there or len(seccomp.program()) % 8 == 0


@sandboxed
def test_ready_tells_what_cannot_be_limited(capsys, monkeypatch):
    monkeypatch.setattr(cgroup, "parent", lambda: None)
    assert "a program holds up to (processes + 1) times memory_mib" in code.ready()[0]
    assert "rewards.code: no control groups" in capsys.readouterr().err


FORKS = """
import os, time
made = 0
try:
    while made < 500:
        if os.fork() == 0:
            time.sleep(1000)
        made += 1
except OSError:
    pass
"""


@sandboxed
def test_processes_are_limited_and_end_with_the_program():
    assert value(FORKS, "assert 0 < made < 8", processes=8) == 1.0
    assert value(FORKS, "assert made >= 8", processes=8) == 0.0
    all_end()


@sandboxed
def test_a_fork_bomb_is_contained():
    assert value("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", ENDS, seconds=1) == 0.0
    all_end()
    assert value(SOLVED) == 1.0


@sandboxed
def test_a_flood_of_output_goes_nowhere(capfd):
    flood = "import sys\nfor _ in range(200): print('x' * 10**6); print('x' * 10**6, file=sys.stderr)"
    assert value(f"{SOLVED}\n{flood}", seconds=20) == 1.0
    every = "for n in range(3, 20):\n        try: os.write(n, b'x' * 10**6)\n        except OSError: pass"
    loud = f"import os\nwhile True:\n    {every}"
    assert value(loud, ENDS, seconds=1) == 0.0
    assert capfd.readouterr() == ("", "")


# ---- the sandbox


@sandboxed
def test_there_is_no_network():
    for made in ("socket.socket()", "socket.socket(socket.AF_INET6)", "socket.create_server(('127.0.0.1', 0))"):
        assert value(ending(f"import socket\n{made}"), ENDS) == 0.0
    assert value(ending("import asyncio, socket\nsocket.socketpair()\nasyncio.run(asyncio.sleep(0))"), ENDS) == 1.0
    assert value(ending("import socket\nsocket.create_connection(('127.0.0.1', 1), 1)"), ENDS) == 0.0


@sandboxed
def test_home_environment_and_the_files_of_the_run_are_not_there(tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(stat.S_IROTH | stat.S_IRUSR)
    monkeypatch.setenv("HF_TOKEN", "x")
    for path in (secret, Path(__file__), Path.home() / ".bashrc", Path("/proc/self"), Path("/etc/passwd")):
        assert path.exists() or path.name == ".bashrc"
        assert value(f"import os\nthere = os.path.exists({str(path)!r})", "assert not there") == 1.0
    assert value("import os\nnames = set(os.environ)", "assert not names - {'PWD', 'LC_CTYPE'}, names") == 1.0


@sandboxed
def test_only_tmp_can_be_written_and_nothing_is_left():
    writes = """
import os
def can(path):
    try:
        open(path, "w")
        return True
    except OSError:
        return False
"""
    assert value(writes, "assert [can(p) for p in ('/x', '/usr/x', '/dev/x', '/tmp/x')] == [0, 0, 0, 1]") == 1.0
    assert value(f"{writes}there = os.path.exists('/tmp/x')", "assert not there") == 1.0


@sandboxed
def test_a_program_is_not_root_and_has_no_powers():
    assert value("import os\nuser = os.getuid()", "assert user != 0") == 1.0
    for deed in ("os.setuid(0)", "os.chroot('/tmp')", "os.setgroups([0])"):
        assert value(ending(f"import os\n{deed}"), ENDS) == 0.0


def test_without_bubblewrap_nothing_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(code.SandboxError, match="only inside bubblewrap, which is missing: apt-get install bubblewrap"):
        value(SOLVED)
    with pytest.raises(code.SandboxError, match="apt-get install bubblewrap"):
        code.ready()


def test_a_bubblewrap_that_does_not_work_is_no_wrong_answer(monkeypatch, tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(code.SandboxError, match=r"\(apt-get install bubblewrap\), which does not work here: bwrap: No"):
        value(SOLVED)


# ---- as a reward of a run


@sandboxed
def test_programs_of_a_step_are_rewarded_in_its_process():
    programs = [SOLVED, "while True: pass", "raise SystemExit", SOLVED]
    arguments = {"prompts": ["q"] * 4, "completions": programs, "completion_ids": [[1]] * 4, "tests": [TESTS] * 4}
    reward = RewardFunction("passes", "rewards.code:passes", 1.0, {"seconds": 1})
    with closing(Worker(reward, RewardLimits())) as worker:
        worker.ask(pickle.dumps((arguments, 4)), 4)
        assert worker.answer() == [1.0, 0.0, 0.0, 1.0]


@sandboxed
def test_programs_end_with_the_process_that_started_them():
    arguments = {"prompts": ["q"], "completions": ["while True: pass"], "completion_ids": [[1]], "tests": [ENDS]}
    reward = RewardFunction("passes", "rewards.code:passes", 1.0, {"seconds": 1000})
    with closing(Worker(reward, RewardLimits(seconds=1))) as worker:
        worker.ask(pickle.dumps((arguments, 1)), 1)
        time.sleep(0.5)
    all_end()


def test_a_missing_sandbox_stops_a_run_before_its_first_step(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    one = Worker(RewardFunction("passes", "rewards.code:passes", 1.0), RewardLimits())
    with closing(one), pytest.raises(RewardError, match="'passes' cannot be loaded: .*apt-get install bubblewrap"):
        one.wait()


@pytest.mark.parametrize(
    "response, program",
    [
        ("```bash\npip list\n```\nSome text\n```python\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\nOutput:\n```\n42\n```", "x = 1\n"),
        ("```\r\nx = 1\r\n```", "x = 1\n"),
        ("```\nx = 1\n```\n```\ny = 2\n```", "y = 2\n"),
        ("x = 1", "x = 1"),
    ],
)
def test_which_block_is_the_program(response, program):
    assert code.program(response) == program
