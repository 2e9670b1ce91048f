"""Python programs, run against tests in a sandbox (bubblewrap) and nowhere else.

A program gets no network, no home, no environment and no writable disk: only the system's libraries, the standard
library of this Python, and a small /tmp in memory. It is limited in time, memory, processes and file size.

What it does not defend against: a program that sets out to deceive its tests, which run in the same interpreter
(objects that equal everything, the frames of the caller); holes in the kernel or in bubblewrap. Look at the samples.
"""

import asyncio
import json
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

from rewards import text

INSTALL = "apt-get install bubblewrap"
WAITS = 4  # times its seconds that a program may take on the clock: several share the processors
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PYTHON = ("python", "py", "python3")
SANDBOXED = Path(__file__).with_name("code_sandbox.py").read_text()
FIRST_UID, UIDS = 50_000, 10_000  # of programs, where the trainer is root
STARTED = b"started\n"


class SandboxError(RuntimeError):
    """There is no sandbox, so nothing was run."""


async def passes(
    prompts,
    completions,
    completion_ids,
    *,
    tests,
    entry_point=None,
    seconds: float = 5.0,
    memory_mib: int = 512,
    processes: int = 4,
    **columns,
):
    """1.0 where the response's program passes its row's tests, else 0.0; None for a row without tests.

    The program is the last fenced block of Python, else the last without a language, else the whole response. `tests`
    is Python that raises where the program is wrong, such as asserts; where the row has an `entry_point`, they define
    `check` and `check(ENTRY_POINT)` is called, as in HumanEval. `if __name__ == "__main__"` is not run. Only the
    standard library can be imported. Leaving early, by `sys.exit` or in any other way, is not passing.

    `seconds` are of processor time; on the clock a program may take four times as long. So no more than four should
    share a processor: where `reward_limits.concurrency` on all ranks is more than that, a slow one can run out of time.
    `memory_mib` holds for each process, and for the files in /tmp; `processes` are those at one time, threads too.
    Raises `SandboxError` where bubblewrap is missing or does not work, `ValueError` where the tests are no Python.
    """
    limits = _limits(seconds, memory_mib, processes)
    out = []
    for completion, test, entry in zip(completions, tests, entry_point or [None] * len(tests), strict=True):
        if test is None:
            out.append(None)
            continue
        _check_tests(test)
        call = [f"check({entry})"] if entry else []
        out.append(float(await run([program(text(completion)), test, *call], limits, WAITS * seconds)))
    return out


def _check_tests(tests: str) -> None:
    try:
        compile(tests, "tests", "exec")
    except SyntaxError as error:
        raise ValueError(f"the row's tests are no Python: {error}") from error


def ready() -> None:
    """Raises `SandboxError` where no program can be run on this machine."""
    if not asyncio.run(run(["import tempfile, socket"], _limits(5, 512, 4), 20)):
        raise SandboxError("the sandbox runs, and a program that does nothing fails in it")


passes.ready = ready


def program(response: str) -> str:
    """The last fenced block of Python, or of no language; the whole response where there is none."""
    blocks = [(kind.strip().lower(), body) for kind, body in FENCE.findall(response.replace("\r\n", "\n"))]
    named = [body for kind, body in blocks if kind in PYTHON]
    unnamed = [body for kind, body in blocks if not kind]
    return (named or unnamed or [response])[-1]


def _limits(seconds: float, memory_mib: int, processes: int) -> dict[str, int]:
    size = memory_mib * 2**20
    return {
        "RLIMIT_CPU": max(1, round(seconds)),
        "RLIMIT_AS": size,
        "RLIMIT_FSIZE": size,
        "RLIMIT_NPROC": processes,
        "RLIMIT_CORE": 0,
    }


async def run(parts: list[str], limits: dict[str, int], seconds: float) -> bool:
    """Whether all parts of a program run to their end, one after the other in one namespace."""
    token = secrets.token_hex(16)
    uid = FIRST_UID + secrets.randbelow(UIDS)  # of its own, for the limit of processes is that of a user
    job = json.dumps({"parts": parts, "token": token, "limits": limits, "uid": uid})
    try:
        process = await asyncio.create_subprocess_exec(
            *_command(limits["RLIMIT_FSIZE"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise SandboxError(f"programs run only inside bubblewrap, which is missing: {INSTALL}") from error
    try:
        process.stdin.write(job.encode())
        process.stdin.close()
        if await process.stdout.read(len(STARTED)) != STARTED:
            why = (await process.stderr.read(400)).decode(errors="replace").strip()
            raise SandboxError(f"programs run only inside bubblewrap ({INSTALL}), which does not work here: {why}")
        async with asyncio.timeout(seconds):
            return await process.stdout.readexactly(len(token)) == token.encode()
    except (asyncio.IncompleteReadError, TimeoutError):
        return False
    finally:
        if process.returncode is None:
            process.kill()  # and with it everything in its namespace
        await process.communicate()  # what is left in its pipes; asyncio waits for their end


def _command(disk: int) -> list[str]:
    """bubblewrap around this Python's interpreter: what it needs is there to read, all else is cut off."""
    python, home = os.path.realpath(sys.executable), Path(sys.base_prefix).resolve()
    alone = ["--unshare-user"]
    if os.getuid() == 0:  # root's processes are not limited; the program becomes a user that nobody is
        alone = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    mounts = []
    for folder in [*home.parents][-2::-1]:  # open to that user, where bubblewrap would make them as private as they are
        mounts += ["--perms", "0755", "--dir", str(folder)]
    mounts += ["--ro-bind", "/usr", "/usr", "--ro-bind", str(home), str(home), "--dev-bind", "/dev/null", "/dev/null"]
    for path in ("/lib", "/lib64", "/etc/ld.so.cache"):
        mounts += ["--ro-bind-try", path, path]
    return [
        *("bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try", *alone),
        *("--die-with-parent", "--new-session", "--clearenv", *mounts),
        *("--size", str(disk), "--perms", "1777", "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"),
        *(python, "-I", "-S", "-c", SANDBOXED),
    ]
