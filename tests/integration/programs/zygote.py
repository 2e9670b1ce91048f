"""A launched process that has imported everything, and forks for each job: FOLDER.

Importing torch, DeepSpeed and vLLM takes longer than most engine tests. Each rank reads FOLDER/N.json, one job after
the other, and runs its program in a child with a process group of its own; support/zygote.py writes the jobs and reads
what came of them. A rank whose child fails takes down those of the others, as the launcher would.
"""

import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

import deepspeed  # noqa: F401
from vllm import LLM  # noqa: F401

import align.train  # noqa: F401
from align.system.parent import die_with_parent

POLL_S = 0.02


def run(job: dict, log: Path) -> None:
    """In the child: the program, with all that it prints in a file. Never returns."""
    code = 1
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        os.environ |= {"MASTER_PORT": str(job["port"]), "TORCHELASTIC_USE_AGENT_STORE": "False", **job["variables"]}
        sys.path[:0] = [str(Path(job["program"]).parent)]
        sys.argv = [job["program"], *job["arguments"]]
        runpy.run_path(job["program"], run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:  # the child ends here, with whatever went wrong in its log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def watch(child: int, number: int, seconds: float) -> int | str:
    """Return the exit code; the child is killed when its time is over ("timeout") or another rank failed ("ended")."""
    until = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        failed = any(path.read_text() != "0" for path in folder.glob(f"{number}.*.done"))
        if failed or time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "ended" if failed else "timeout"
        time.sleep(POLL_S)


die_with_parent()
folder, rank, number = Path(sys.argv[1]), os.environ["RANK"], 0
(folder / f"ready.{rank}").touch()
while True:
    path = folder / f"{number}.json"
    while not path.exists():
        time.sleep(POLL_S)
    job = json.loads(path.read_text())
    child = os.fork()
    if child == 0:
        die_with_parent()
        run(job, folder / f"{number}.{rank}.log")
    code = watch(child, number, job["seconds"])
    done = folder / f"{number}.{rank}.done"
    done.with_suffix(".part").write_text(str(code))
    done.with_suffix(".part").rename(done)
    number += 1
