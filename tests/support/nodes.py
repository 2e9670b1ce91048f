"""Nodes of a run without a second machine: network namespaces that a bridge joins, each with a folder of its own.

`accelerate launch` starts in each as it would on a machine, with its own name, network and `run.out`.
"""

import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from support.paths import PYTHONPATH, ROOT

USES = itertools.count()  # a namespace that is removed stays for a while

PORT = 29517  # of the rendezvous, in the first node's own network


def why_not() -> str | None:
    """Why there can be no namespaces here; None where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    name = f"al{os.getpid()}try"
    try:
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces are not permitted: {error}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


@dataclass
class Nodes:
    """Some nodes, `node0` with the address 10.97.0.1 and so on; `folders` are where their processes start."""

    tag: str  # in the names of all that the system has of them
    folders: list[Path]
    started: list[subprocess.Popen] = field(default_factory=list)

    @property
    def network(self) -> str:
        """The first three numbers of the addresses."""
        return "10.97.0"

    def start(self, node: int, machine: str, script: Path, *words: str, **variables: str) -> subprocess.Popen:
        """Start a script on a node under `launch/<machine>.yaml`, one process each; its folder gets its `log`."""
        count = len(self.folders)
        launch = [Path(sys.executable).with_name("accelerate"), "launch"]
        launch += ["--config_file", ROOT / "launch" / f"{machine}.yaml", "--num_machines", count]
        launch += ["--num_processes", count, "--machine_rank", node]
        launch += ["--main_process_ip", f"{self.network}.1", "--main_process_port", PORT]
        command = shlex.join(map(str, [*launch, script, *words]))
        core = sorted(os.sched_getaffinity(0))[node % len(os.sched_getaffinity(0))]  # its own, as far as there are
        named = f"hostname node{node}; exec taskset -c {core} {command}"
        log = (self.folders[node] / "log").open("a")
        process = subprocess.Popen(
            ["ip", "netns", "exec", f"{self.tag}n{node}", "unshare", "--uts", "sh", "-c", named],
            cwd=self.folders[node],
            env={**os.environ, "PYTHONPATH": PYTHONPATH, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()
        self.started.append(process)
        return process

    def run(self, machine: str, script: Path, *words: str, seconds: float = 300, **variables: str) -> list[int]:
        """Start the same on all nodes and wait for the end of each; their exit codes."""
        started = [self.start(node, machine, script, *words, **variables) for node in range(len(self.folders))]
        return ends(started, seconds)

    def log(self, node: int) -> str:
        """What a node has printed."""
        path = self.folders[node] / "log"
        return path.read_text() if path.exists() else ""


def ends(started: Sequence[subprocess.Popen], seconds: float) -> list[int]:
    """Wait for the end of each; their exit codes."""
    until = time.monotonic() + seconds
    return [process.wait(max(1.0, until - time.monotonic())) for process in started]


def kill(process: subprocess.Popen) -> None:
    """Kill a node: its launcher and all that it started, by SIGKILL, as where the machine loses its power."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def nodes(folders: Sequence[Path]) -> Iterator[Nodes]:
    """As many nodes as folders; what they started and all that the system has of them is gone behind the block.

    What a process left that was killed inside its own block goes too.
    """
    tag = f"al{os.getpid()}u{next(USES)}"
    made = Nodes(tag, list(folders))
    for left in _leftovers():
        _clear(left)
    try:
        _ip("link", "add", f"{tag}b", "type", "bridge")
        _ip("link", "set", f"{tag}b", "up")
        for i, folder in enumerate(folders):
            folder.mkdir(parents=True, exist_ok=True)
            _ip("netns", "add", f"{tag}n{i}")
            _ip("link", "add", f"{tag}v{i}", "type", "veth", "peer", "name", "net0", "netns", f"{tag}n{i}")
            _ip("link", "set", f"{tag}v{i}", "master", f"{tag}b", "up")
            _ip("-n", f"{tag}n{i}", "addr", "add", f"{made.network}.{i + 1}/24", "dev", "net0")
            for link in ("net0", "lo"):
                _ip("-n", f"{tag}n{i}", "link", "set", link, "up")
        yield made
    finally:
        for process in made.started:
            kill(process)
        _clear(tag)


def _leftovers() -> set[str]:
    """The tags of processes that are no more."""
    tags = {found[0] for name in _namespaces() if (found := re.match(r"al\d+u\d+(?=n\d)", name))}
    return {tag for tag in tags if not psutil.pid_exists(int(tag[2:].partition("u")[0]))}


def _clear(tag: str) -> None:
    """Remove all that the system has under a tag."""
    for name in _namespaces():
        if name.startswith(f"{tag}n"):
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            for process in map(int, found.stdout.split()):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
    subprocess.run(["ip", "link", "del", f"{tag}b"], capture_output=True)


def _namespaces() -> list[str]:
    found = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True)
    return [line.split()[0] for line in found.stdout.splitlines() if line.split()]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
