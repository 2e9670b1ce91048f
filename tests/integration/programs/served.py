"""A run against servers, or in process with their seeds: RECIPE OUT FAULT [key=value ...].

Writes what was sampled at each step, the losses and the gaps as JSON. FAULT is `none`, `own` (the in-process engine,
asked as servers are), `release` (here is another vLLM than on the servers), or what a server gets in the middle of the
second step: a signal for its process group, such as `KILL:1234`; `ENGINE:1234`, where the engine in it is killed, so
that its paths answer 500; `WEIGHTS:http://127.0.0.1:8000`, where another run names its weights.
"""

import json
import os
import signal
import sys
import threading

import httpx
import psutil
from accelerate.utils import gather_object

from align.check.check import check_run
from align.checkpoint.resume import Origin
from align.config.experiment import load_experiment
from align.rollout import server_facts, vllm_engine
from align.rollout.rollouts import Rollout
from align.run.processes import make_accelerator, set_threads
from align.run.setup import load
from align.run.terminal import quiet
from align.train import start


def plant(kind, where):
    """A fault of one server."""
    if kind == "WEIGHTS":
        another = {"finish_weight_update": {"weight_version": "another-v3"}}
        for path in ("pause?mode=keep", "start_weight_update", "finish_weight_update", "resume"):
            httpx.post(f"{where}/{path}", json=another.get(path), trust_env=False, timeout=60).raise_for_status()
    elif kind == "ENGINE":
        below = psutil.Process(int(where)).children(recursive=True)
        (engine,) = [process for process in below if "EngineCore" in "".join(process.cmdline())]
        engine.kill()
    else:
        os.killpg(int(where), getattr(signal, f"SIG{kind}"))


recipe, out, fault, *overrides = sys.argv[1:]
quiet()
set_threads()
if fault == "own":  # on a CPU this engine draws from one stream by itself, and dies of seeds where prompts are cut
    arguments = vllm_engine.engine_arguments
    whole = dict(enable_chunked_prefill=False, max_num_batched_tokens=4096)
    vllm_engine.engine_arguments = lambda *asked: {**arguments(*asked), **whole}
    vllm_engine.request_seeds = lambda seeds, hardware: list(seeds.requests)
if fault == "release":
    server_facts.version = lambda: "0.31.4"
experiment = load_experiment(recipe, overrides)
accelerator = make_accelerator(experiment)
run = load(check_run(experiment, accelerator), Origin(), accelerator)
start(run, Origin(), ())
steps = []
for step in range(experiment.recipe.run.steps):
    if ":" in fault and step == 1 and accelerator.is_main_process:
        threading.Timer(0.05, plant, fault.split(":", 1)).start()
    record = run.loop.step(step)
    known = [rollout for batch in record.batches for rollout in batch.collected.sampled]
    mine = [
        (one.group, one.index, list(one.response.ids)) for one in known if isinstance(one, Rollout)
    ]  # others: outlines
    names = "loss", "sync/gap", "sync/gap_max", "seconds/sync", "seconds/proof", "seconds/generate"
    steps.append({"ids": sorted(gather_object(mine)), **{name: record.metrics[name] for name in names}})
servers = getattr(run.sampler.generator, "_fleet", None)
ready = gather_object([[one.url for one in servers.ready] if servers else []])
if accelerator.is_main_process:
    with open(out, "w") as file:
        json.dump({"steps": steps, "ready": ready}, file)
run.close()
accelerator.end_training()
