"""Functions run in two processes that talk over gloo, forked: in a second, and without an engine."""

import multiprocessing
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

PATIENCE = 60  # seconds


def on_ranks(function, count=2, patience=PATIENCE):
    """[what the function returns on each rank]; what one raises is raised here."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        answers = context.Queue()
        processes = [
            context.Process(target=_run, args=(function, rank, count, Path(folder) / "store", answers, patience))
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        try:
            found = dict(answers.get(timeout=patience) for _ in processes)
        finally:
            for process in processes:
                process.join(1)
                process.kill()
    if failed := [value for kind, value in found.values() if kind == "raised"]:
        raise AssertionError(failed[0])
    return [found[rank][1] for rank in range(count)]


def _run(function, rank, count, store, answers, patience):
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timedelta(seconds=patience)
        )
        answers.put((rank, ("returned", function())))
        dist.barrier()
    except BaseException:
        answers.put((rank, ("raised", traceback.format_exc())))
