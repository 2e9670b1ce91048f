"""Python programs, run against tests in a sandbox (bubblewrap) and nowhere else.

A program gets no network, no home, no environment and no writable disk: only the system's libraries, the standard
library of this Python, and a small /tmp in memory. It is limited in time, memory, processes and file size.

Its tests run in a sandbox of their own, which the program cannot reach: it is asked for what they name, gets inputs as
data and gives outputs as data, and they compare. So it never holds an expected value. An object of a class of its own
equals no data.

Where tests can be deceived: what they take from the program, they take on trust. `a == b` between two objects of the
program's own class is its own answer, and so is a helper that the tests use without defining or importing it. Holes in
the kernel or in bubblewrap are not defended against either. Look at the samples.
"""

import ast
import asyncio
import re
import sys

from rewards import text
from rewards.sandbox.box import Limits, SandboxError, judge, unlimited

WAITS = 4  # times its seconds that a program may take on the clock: several share the processors
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PYTHON = ("python", "py", "python3")
NOTHING = "def nothing():\n    import socket, tempfile\n    return [tempfile.gettempdir()]"


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
    """1.0 where the response's program passes its row's tests, else 0.0; None for a row whose tests ask it nothing.

    The program is the last fenced block of Python, else the last without a language, else the whole response. `tests`
    is Python that raises where the program is wrong, such as asserts; where the row has an `entry_point` and they
    define `check`, `check(ENTRY_POINT)` is called, as in HumanEval. `if __name__ == "__main__"` is not run. Only the
    standard library can be imported. Leaving early, by `sys.exit` or in any other way, is not passing.

    What the tests name is first what they define, then builtins and modules of the standard library, then the
    program's; a tested function that is called like a builtin has to be named by `entry_point`. Arguments go as data or
    as functions, and results come as data: None, bool, int, float, complex, str, bytes, lists, tuples, sets, dicts,
    ranges, deques, decimals, fractions, dates. Those of subclasses are what they are without them, such as a dict for a
    Counter. Other objects stay with the program: the tests can call, read, index and iterate over them, compare them
    with each other, and neither compare nor reckon with data. A list, dict or set that a call changes is changed in the
    tests where the call returns None, and what it prints is printed there.

    `seconds` are of processor time; on the clock a program may take four times as long. So no more than four should
    share a processor: where `reward_limits.concurrency` on all ranks is more than that, a slow one can run out of time.
    `memory_mib` holds for each process, and for the files in /tmp, and where control groups can be made for all
    together; `processes` are those at one time, threads too.
    Raises `SandboxError` where bubblewrap is missing or does not work, `ValueError` where the tests are no Python or
    fail before they ask the program for anything.
    """
    limits = Limits(seconds, memory_mib, processes)
    out = []
    for completion, test, entry in zip(completions, tests, entry_point or [None] * len(tests), strict=True):
        if not _has_tests(test, entry):
            out.append(None)
            continue
        found = await judge(program(text(completion)), test, entry or None, limits, WAITS * seconds)
        if not found.asked and not found.passed:
            raise ValueError(f"the row's tests fail before they ask the program for anything: {found.why}")
        out.append(float(found.passed) if found.asked else None)
    return out


def _has_tests(tests: str | None, entry_point: str | None) -> bool:
    """Whether there is a statement. Raises `ValueError` where tests or entry point are no Python."""
    try:
        ast.parse(entry_point or "0", mode="eval")
        return bool(ast.parse(tests or "").body)
    except SyntaxError as error:
        raise ValueError(f"the row's tests are no Python: {error}") from error


def ready() -> list[str]:
    """Return, and say on standard error, what of a program cannot be limited on this machine. Raises `SandboxError`
    where none can be run."""
    found = asyncio.run(judge(NOTHING, 'assert nothing() == ["/tmp"]', None, Limits(5, 512, 4), 20))
    if not found.passed:
        raise SandboxError(f"the sandbox runs, and a program that does nothing fails in it: {found.why}")
    notes = unlimited()
    for note in notes:
        print(f"rewards.code: {note}", file=sys.stderr)
    return notes


passes.ready = ready


def program(response: str) -> str:
    """The last fenced block of Python, or of no language; the whole response where there is none."""
    blocks = [(kind.strip().lower(), body) for kind, body in FENCE.findall(response.replace("\r\n", "\n"))]
    named = [body for kind, body in blocks if kind in PYTHON]
    unnamed = [body for kind, body in blocks if not kind]
    return (named or unnamed or [response])[-1]
