"""bubblewrap around a program and around its tests: each gets only the system's libraries, the standard library of this
Python and a small /tmp in memory."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rewards.sandbox import cgroup, seccomp

INSTALL = "apt-get install bubblewrap"
LOADS = """import json, sys, types
for name, text in json.loads(sys.argv[1]).items():
    sys.modules[name] = module = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
module.main(json.loads(sys.argv[2]))
"""
FIRST_UID, UIDS = 50_000, 10_000  # of programs, where the trainer is root
STARTED = b"started\n"
FILES = 10_000  # in /tmp, where the trainer is root: the kernel's memory for each is counted nowhere
DESCRIPTORS = 64  # of a process; each may hold buffers


class SandboxError(RuntimeError):
    """There is no sandbox, so nothing was run."""


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: float  # of processor time, for each process
    memory_mib: int  # for each process, and for the files in /tmp
    processes: int  # at one time, threads too

    def of_process(self) -> dict[str, int]:
        """The limits that `setrlimit` takes."""
        size = self.memory_mib * 2**20
        return {
            "RLIMIT_CPU": max(1, round(self.seconds)),
            "RLIMIT_AS": size,
            "RLIMIT_FSIZE": size,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_NOFILE": DESCRIPTORS,
            "RLIMIT_MSGQUEUE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True)
class Verdict:
    """What the tests said."""

    passed: bool = False
    asked: bool = True  # whether they asked the program for anything
    why: str = ""


async def judge(program: str, tests: str, entry_point: str | None, limits: Limits, seconds: float) -> Verdict:
    """Run a program, and its tests beside it, for at most so many seconds. Raises `SandboxError`."""
    ours, theirs = socket.socketpair()
    with ExitStack() as stack:
        stack.enter_context(ours), stack.enter_context(theirs)
        begin = stack.enter_context(cgroup.limited(limits.memory_mib * 2**20))
        running = []
        try:
            running.append(await _start("program", limits, begin, stdin=theirs))
            running.append(await _start("judge", limits, begin, stdin=subprocess.PIPE, channel=ours.fileno()))
            ours.close(), theirs.close()
            return await _verdict(running, {"program": program, "tests": tests, "entry_point": entry_point}, seconds)
        except FileNotFoundError as error:
            raise SandboxError(f"programs run only inside bubblewrap, which is missing: {INSTALL}") from error
        finally:
            _end(running)
            for process in running:
                await process.communicate()  # what is left in its pipes; asyncio waits for their end


async def _verdict(running: Sequence[Process], job: dict[str, str | None], seconds: float) -> Verdict:
    """What the tests say; that they do not pass where they say nothing in time."""
    _, tests = running
    tests.stdin.write(json.dumps(job).encode())
    tests.stdin.close()
    if await tests.stdout.read(len(STARTED)) != STARTED:
        _end(running)
        said = b" ".join([await process.stderr.read(400) for process in running])
        why = said.decode(errors="replace").strip()
        raise SandboxError(f"programs run only inside bubblewrap ({INSTALL}), which does not work here: {why}")
    try:
        async with asyncio.timeout(seconds):
            said = await tests.stdout.read()
    except TimeoutError:
        return Verdict()
    return Verdict(**json.loads(said)) if said else Verdict()  # nothing where they were killed


def _end(running: Sequence[Process]) -> None:
    """Kill the sandboxes, and with each everything in its namespace."""
    for process in running:
        with suppress(ProcessLookupError):
            process.kill()


async def _start(role: str, limits: Limits, begin: Sequence[str], stdin: int | socket.socket, **settings) -> Process:
    """Start a sandbox; its first line on standard output says that it runs."""
    passed = [*settings.values()]
    command = [*begin, "bwrap"]
    settings |= {"limits": limits.of_process(), "files": FILES}
    settings["uid"] = FIRST_UID + secrets.randbelow(UIDS)  # of its own, for the limit of processes is that of a user
    with ExitStack() as stack:
        if seccomp.supported():
            calls, writes = os.pipe()
            stack.callback(os.close, calls)
            os.write(writes, seccomp.program())
            os.close(writes)
            passed.append(calls)
            command += ["--seccomp", str(calls)]
        command += [*_isolation(limits.memory_mib * 2**20), *_python(), "-c", LOADS, _modules(role)]
        return await asyncio.create_subprocess_exec(
            *(*command, json.dumps(settings)),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=passed,
        )


def _isolation(disk: int) -> list[str]:
    """What this Python's interpreter needs is there to read, all else is cut off."""
    home = Path(sys.base_prefix).resolve()
    alone = ["--unshare-user", *_no_namespaces()]
    if os.getuid() == 0:  # root's processes are not limited; the program becomes a user that nobody is
        powers = ("CAP_SETUID", "CAP_SETGID", "CAP_SYS_ADMIN")  # until then; the last limits the files in /tmp
        alone = ["--cap-drop", "ALL", *(word for power in powers for word in ("--cap-add", power))]
    mounts = []
    for folder in [*home.parents][-2::-1]:  # open to that user, where bubblewrap would make them as private as they are
        mounts += ["--perms", "0755", "--dir", str(folder)]
    mounts += ["--ro-bind", "/usr", "/usr", "--ro-bind", str(home), str(home), "--dev-bind", "/dev/null", "/dev/null"]
    for path in ("/lib", "/lib64", "/etc/ld.so.cache"):
        mounts += ["--ro-bind-try", path, path]
    return [
        *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try", *alone),
        *("--die-with-parent", "--new-session", "--clearenv", *mounts),
        *("--size", str(disk), "--perms", "1777", "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"),
    ]


@cache
def _no_namespaces() -> list[str]:
    """The option that keeps a program from making namespaces of users; bubblewrap has it from version 0.8."""
    said = subprocess.run(["bwrap", "--help"], capture_output=True, text=True)
    return ["--disable-userns"] if "--disable-userns" in said.stdout + said.stderr else []


def _python() -> list[str]:
    return [os.path.realpath(sys.executable), "-I", "-S"]


@cache
def _modules(role: str) -> str:
    """The text of the modules that a role loads, the last of which it is; their files may not be open to its user."""
    folder = Path(__file__).parent
    return json.dumps({f"rewards.sandbox.{name}": (folder / f"{name}.py").read_text() for name in ("wire", role)})


def unlimited() -> list[str]:
    """What a program could still use without limit, or beyond its own, on this machine."""
    found = []
    if cgroup.parent() is None:
        found.append(
            "no control groups (cgroup v2) can be made here, so memory is limited for each process and for the files "
            "in /tmp, not for all together: a program holds up to (processes + 1) times memory_mib"
        )
        if os.getuid() != 0:
            found.append("the number of files in /tmp is not limited, and each takes memory of the kernel")
    if not seccomp.supported():
        found.append("there is no filter of system calls for this processor: memory of memfd_create is not limited")
    return found
