"""Starting `accelerate launch` from a test."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from support.paths import PYTHONPATH, ROOT


def start(
    machine: str, script: Path, *arguments: str, inside: Sequence[str] = (), timeout: int = 600, **variables: str
) -> subprocess.CompletedProcess:
    """Run a script under `launch/<machine>.yaml`, by the command `inside` where there is one; the process that has
    ended, with its output."""
    accelerate = Path(sys.executable).with_name("accelerate")
    command = [*inside, str(accelerate), "launch", "--config_file", str(ROOT / "launch" / f"{machine}.yaml")]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, **variables}
    command += ["--main_process_port", "0", str(script), *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
    )


def launch(machine: str, script: Path, *arguments: str, timeout: int = 600, **variables: str) -> str:
    """The same, and its output. Fails the test with that output where it ended with an error."""
    done = start(machine, script, *arguments, timeout=timeout, **variables)
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


def heed_ctrl_c() -> None:
    """In a child process: let Ctrl-C end it, also where pytest was started in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
