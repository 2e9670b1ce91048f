"""A process of a launcher ends with it, however early that is killed, and says its last word after it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from support.launch import heed_ctrl_c
from support.paths import PYTHONPATH, ROOT

# A launcher that starts recipes/train.py as `accelerate launch` does, tells its process, and waits.
LAUNCHER = """
import subprocess, sys
process = subprocess.Popen([sys.executable, *sys.argv[1:]])
print(process.pid, flush=True)
process.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
@pytest.mark.parametrize("after", [1.0, 2.5])
def test_a_launcher_killed_while_libraries_are_imported_leaves_no_orphan(tmp_path, after):
    (tmp_path / "recipe.yaml").write_text("run: {out: x, steps: 1}")
    variables = {"PYTHONPATH": PYTHONPATH, "TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0"}
    words = [str(ROOT / "recipes/train.py"), str(tmp_path / "recipe.yaml")]
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, *words],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=heed_ctrl_c,
        text=True,
    )
    child = psutil.Process(int(launcher.stdout.readline()))
    time.sleep(after)
    assert child.is_running()  # importing takes longer
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    child.wait(timeout=5)
    launcher.stdout.close()


ORPHAN = """
import os, time
launcher = os.getpid()
if os.fork():
    os._exit(0)  # it is gone before its process looks
while os.getppid() == launcher:
    time.sleep(0.01)
from align.system.parent import end_with_launcher
end_with_launcher()
print("lives on")
"""


@pytest.mark.parametrize("launched", [True, False])
def test_a_process_that_init_has_taken_over_ends(launched):
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, **({"TORCHELASTIC_RUN_ID": "x"} if launched else {})}
    done = subprocess.run([sys.executable, "-c", ORPHAN], env=environment, capture_output=True, text=True, timeout=60)
    if "lives on" in done.stdout and launched:
        parent = psutil.Process(1).cmdline()[:1]
        pytest.skip(f"orphans come to another process than init here, or init is Python: {parent}")
    assert ("lives on" in done.stdout) != launched
    assert ("the launcher of this process is gone" in done.stderr) == launched


CHILD = "import os; from align.system.parent import say_after; say_after(os.getppid(), 'why; it \"ended\" $HOME %s')"
PARENT = (
    "import subprocess, sys, time; subprocess.run([sys.executable, '-c', sys.argv[1]]); time.sleep(2); sys.exit('?')"
)


def test_the_last_word_comes_after_what_the_parent_prints():
    """The parent stays a zombie until its output has ended, and its last word is part of that."""
    done = subprocess.run([sys.executable, "-c", PARENT, CHILD], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.splitlines() == ["?", 'why; it "ended" $HOME %s']


LONG = CHILD.replace("'why;", "'why;' + 'x' * 300_000 + '\\u00e9;")


def test_the_last_word_may_be_longer_than_a_command_and_is_said_from_any_folder(tmp_path):
    """A folder of the user's that is called like a module is not taken for it."""
    (tmp_path / "align").mkdir()
    (tmp_path / "psutil.py").write_text("raise SystemExit('the wrong one')")
    child = f"import sys; sys.path[0] = {str(ROOT)!r}; {LONG}"
    env = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", PARENT, child], cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=60
    )
    assert done.stderr.splitlines() == ["?", "why;" + "x" * 300_000 + '\u00e9; it "ended" $HOME %s']
