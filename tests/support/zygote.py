"""Programs run in processes that have imported everything already: seconds instead of half a minute for each."""

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support.paths import PYTHONPATH, ROOT

RANKS = {"cpu": 1, "cpu_zero2": 2, "cpu_zero3": 2}
PROGRAM = ROOT / "tests/integration/programs/zygote.py"


class Zygote:
    """The processes of one launch file, which fork for each job."""

    def __init__(self, machine: str):
        self.ranks, self.count = RANKS[machine], 0
        self.folder = Path(tempfile.mkdtemp(prefix=f"zygote-{machine}-"))
        accelerate, settings = Path(sys.executable).with_name("accelerate"), ROOT / "launch" / f"{machine}.yaml"
        command = [accelerate, "launch", "--config_file", settings, "--main_process_port", "0", PROGRAM, self.folder]
        self.log = (self.folder / "log").open("w")
        self.process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": PYTHONPATH},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        atexit.register(self.close)
        self._wait([self.folder / f"ready.{rank}" for rank in range(self.ranks)], 300)

    def run(self, program: Path, arguments: list[str], variables: dict[str, str], seconds: float) -> tuple[int, str]:
        """(exit code of the first rank that failed, or 0; what all ranks printed)."""
        number, self.count = self.count, self.count + 1
        job = dict(program=str(program), arguments=arguments, variables=variables, seconds=seconds, port=free_port())
        part = self.folder / f"{number}.part"
        part.write_text(json.dumps(job))
        part.rename(self.folder / f"{number}.json")
        done = [self.folder / f"{number}.{rank}.done" for rank in range(self.ranks)]
        self._wait(done, seconds + 30)
        codes = [path.read_text() for path in done]
        printed = "".join((self.folder / f"{number}.{rank}.log").read_text() for rank in range(self.ranks))
        if "timeout" in codes:
            raise TimeoutError(f"{program.name} was not done after {seconds:g} s:\n{printed[-8000:]}")
        return next((int(code) for code in codes if code not in ("0", "ended")), 0), printed

    def _wait(self, paths: list[Path], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not all(path.exists() for path in paths):
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(
                    f"the launched processes are gone or stuck:\n{(self.folder / 'log').read_text()[-4000:]}"
                )
            time.sleep(0.02)

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


_STARTED: dict[str, Zygote] = {}


def fork(machine: str, program: Path, *arguments: str, timeout: float = 600, **variables: str) -> tuple[int, str]:
    """(exit code, output of all ranks) of a program under `launch/<machine>.yaml`, as if it had been launched."""
    if machine not in _STARTED:
        _STARTED[machine] = Zygote(machine)
    return _STARTED[machine].run(program, list(map(str, arguments)), variables, timeout)


def forked(machine: str, program: Path, *arguments: str, timeout: float = 600, **variables: str) -> str:
    """The output. Fails the test with it where the program ended with an error."""
    code, printed = fork(machine, program, *arguments, timeout=timeout, **variables)
    assert code == 0, printed[-8000:]
    return printed
