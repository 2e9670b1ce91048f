"""Two long-lived processes that take turns, so that neither pays for loading nor runs beside the other."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Listener
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEFAULTS = {"dtype": "float32", "adapter": True, "micro_batch_tokens": 16384, "objectives": {"grpo": {}}}


@contextmanager
def worker(kind: str, work: Path, **settings) -> Iterator[Connection]:
    """A process of that kind, ready to be told what to run."""
    socket = work / f"{kind}{len(list(work.iterdir()))}"
    settings = {**DEFAULTS, "folder": str(work / "trl"), **settings}
    command = [sys.executable]
    if kind in ("ours", "our_loop"):
        command += ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "launch/cpu.yaml")]
    script = "steps.py" if kind.endswith("_loop") else "worker.py"
    command += [str(Path(__file__).parent / script), kind, str(socket), json.dumps(settings)]
    with Listener(str(socket)) as listener:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        listener._listener._socket.settimeout(300)  # of a process that fails while it loads nothing is heard
        with listener.accept() as connection:
            connection.recv()
            yield connection
            connection.send("end")
        process.wait()


def told(connection: Connection, *work: str) -> dict:
    connection.send(work)
    return connection.recv()
