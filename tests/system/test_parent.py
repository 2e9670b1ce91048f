"""The last word of a process, below what the one that started it says."""

import subprocess
import sys

from support.paths import ROOT

CHILD = "import os; from align.system.parent import say_after; say_after(os.getppid(), 'why; it \"ended\" $HOME %s')"
PARENT = (
    "import subprocess, sys, time; subprocess.run([sys.executable, '-c', sys.argv[1]]); time.sleep(2); sys.exit('?')"
)


def test_the_last_word_comes_after_what_the_parent_prints():
    """The parent stays a zombie until its output has ended, and its last word is part of that."""
    done = subprocess.run([sys.executable, "-c", PARENT, CHILD], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.splitlines() == ["?", 'why; it "ended" $HOME %s']
