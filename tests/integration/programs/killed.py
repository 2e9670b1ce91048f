"""Train, and be killed on the way: KILLS SEEN RECIPE [key=value ...].

KILLS is JSON, [[point, step], ...]: one life each that ends there by SIGKILL, and then one that ends by itself. A step
is the one that is being done, counted from 1; before the first it is 0. SEEN gets a line for each call that sampled or
scored for training. One process imports everything and forks each life, so that a life takes seconds.

On several ranks there is one life only, and the last rank, or the launcher, is killed; at `full disk` it cannot write.
"""

import json
import os
import resource
import shutil
import signal
import socket
import sys
from functools import partial
from hashlib import sha256
from pathlib import Path

from align import train
from align.checkpoint import checkpoint
from align.learner import weights
from align.learner.engine_writer import KeepsFailures
from align.learner.learner import Learner
from align.loop import Loop
from align.result import report
from align.rollout import episodes, rollouts
from align.rollout.journal import Journal
from align.rollout.rollouts import Scorer
from align.rollout.transformers_engine import Transformers
from align.rollout.vllm_engine import VLLM
from align.run.evaluation import Evaluation
from align.run.log import RunLog
from align.system import files
from align.train import main

now = {"step": 0, "evaluating": False}


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_launcher():
    os.kill(os.getppid(), signal.SIGKILL)
    signal.pause()


def wrap(place, name, around):
    """Replace a function by `around(original, *arguments)`."""
    original = getattr(place, name)
    setattr(place, name, lambda *arguments, **named: around(original, *arguments, **named))


def before(original, *arguments, **named):
    kill()


def after(original, *arguments, **named):
    original(*arguments, **named)
    kill()


def half_a_line(original, log, path, rows):
    with path.open("a") as file:
        file.write(json.dumps(rows[0])[:60])
    kill()


def half_an_entry(original, path, text):
    path.with_name(f".{path.name}").write_text(text[: len(text) // 2])
    kill()


def half_a_file(original, writer, state_dict, path):
    original(writer, state_dict, path)
    os.truncate(path, os.path.getsize(path) // 2)
    kill()


def full_disk(original, learner, folder):
    """No kill: this rank may not write more into a file than this, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    original(learner, folder)


def half_removed(original, folder, keep):
    def remove(path):
        next(file for file in path.rglob("*") if file.is_file()).unlink()
        kill()

    wrap(shutil, "rmtree", lambda _, path: remove(path))
    original(folder, keep)


def samples_line(original, log, path, rows):
    if path.name == "samples.jsonl":
        kill()
    original(log, path, rows)


def metrics_line(original, log, path, rows):
    if path.name == "metrics.jsonl":
        kill()
    original(log, path, rows)


def scored_entry(original, path, text):
    if path.suffix == ".scored":
        half_an_entry(original, path, text)
    original(path, text)


def of_sums(original, path):
    if path.name == checkpoint.SUMS:
        kill()
    original(path)


def at_call(count):
    """Kills before a call of the step, counted from 1."""
    calls = []

    def deadly(original, *arguments, **named):
        calls.append(1)
        if len(calls) == count:
            kill()
        return original(*arguments, **named)

    return deadly


POINTS = {
    "before the first round": (episodes, "ask", at_call(2)),
    "in a round": (Transformers, "generate", at_call(2)),
    "in an environment": (episodes, "ask", at_call(3)),
    "loading": (train, "load", before),
    "described": (RunLog, "describe", after),
    "generating": (Transformers, "generate", before),
    "generating (vLLM)": (VLLM, "generate", before),
    "sampled": (Scorer, "score", before),
    "scored, not on disk": (Scorer, "score", after),
    "half an entry": (files, "write_whole", scored_entry),
    "scored": (rollouts, "announce", before),
    "scored (launcher)": (Scorer, "announce", lambda *_: kill_launcher()),
    "updating": (Learner, "_step", before),
    "updated": (Learner, "update", after),
    "syncing": (Transformers, "sync", before),
    "syncing (vLLM)": (VLLM, "sync", after),
    "half a line": (RunLog, "_append", half_a_line),
    "before samples": (RunLog, "_write", samples_line),
    "evaluating": (Evaluation, "run", after),
    "before the evaluation's line": (RunLog, "_append", metrics_line),
    "evaluation logged": (RunLog, "evaluation", after),
    "checkpoint begun": (checkpoint, "_begin", after),
    "half a checkpoint file": (KeepsFailures, "save", half_a_file),
    "full disk": (Learner, "save", full_disk),
    "before checksums": (files, "digests", before),
    "before fsync": (files, "to_disk", of_sums),
    "checkpoint named": (checkpoint, "_name", after),
    "half removed": (checkpoint, "tidy", half_removed),
    "before forgetting": (Journal, "forget", before),
    "before the adapter": (weights, "save", before),
    "adapter saved": (weights, "save", after),
    "reporting": (report, "plot", before),
    "finished": (train, "finish", after),
}


def at(step, deadly, original, *arguments, **named):
    """The deadly function at its step, the original one at others."""
    return (partial(deadly, original) if now["step"] == step else original)(*arguments, **named)


def follow():
    """Notes the step, and what is sampled and scored for training."""

    def steps(original, run, log, start):
        now["step"] = start
        original(run, log, start)

    def step(original, loop, number):
        now["step"] = number + 1
        return original(loop, number)

    def evaluate(original, evaluation):
        now["evaluating"] = True
        out = original(evaluation)
        now["evaluating"] = False
        return out

    def note(kind, value):
        if not now["evaluating"]:
            with seen.open("a") as file:
                file.write(f"{kind} {rank} {value}\n")

    def generate(original, engine, prompts, **settings):
        out = original(engine, prompts, **settings)
        note("sampled", settings["seeds"].stream)  # of a position of the data
        return out

    def score(original, scorer, sampled, total_rows):
        out = original(scorer, sampled, total_rows)
        note("scored", sha256(repr([response.ids for *_, response in sampled]).encode()).hexdigest())
        return out

    wrap(train, "steps", steps)
    wrap(Loop, "step", step)
    wrap(Evaluation, "run", evaluate)
    wrap(Transformers, "generate", generate)
    wrap(VLLM, "generate", generate)
    wrap(Scorer, "score", score)


def trained(kill_at, arguments):
    follow()
    if kill_at:
        place, name, deadly = POINTS[kill_at[0]]
        wrap(place, name, partial(at, kill_at[1], deadly))
    return main(arguments)


def forked(kill_at, arguments):
    """The status that a life ended with."""
    child = os.fork()
    if child == 0:
        with socket.socket() as free:  # the rendezvous of the life before may still hold the launcher's port
            free.bind(("localhost", 0))
            os.environ |= {"MASTER_PORT": str(free.getsockname()[1]), "TORCHELASTIC_USE_AGENT_STORE": "False"}
        sys.exit(trained(kill_at, arguments))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


kills, seen, *arguments = sys.argv[1:]
kills, seen, rank = json.loads(kills), Path(seen), int(os.environ["RANK"])
if os.environ["WORLD_SIZE"] != "1":
    (mine,) = kills if kills and rank == int(os.environ["WORLD_SIZE"]) - 1 else (None,)
    sys.exit(trained(mine, arguments))
if "sampling.engine=transformers" not in arguments:
    import vllm  # noqa: F401  a third of what a life with it takes
for number, kill_at in enumerate([*kills, None]):
    status = forked(kill_at, [*arguments, *(["--resume"] if number else [])])
    if status != (-signal.SIGKILL if kill_at else 0):
        sys.exit(f"{kill_at or 'the last life'}: ended with status {status}")
