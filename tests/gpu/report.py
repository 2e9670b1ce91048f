"""What the parts share: they say rows of numbers, and skip themselves with a reason."""

import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable

SKIPPED = 77


class Skip(Exception):
    """This part cannot run here; the message says why."""


def say(**row: object) -> None:
    """Write down one row of numbers at once, so that a later end of this process loses nothing."""
    with open(os.environ.get("PART_OUT", "/dev/stdout"), "a") as file:
        file.write(json.dumps(row, default=str) + "\n")


def main(part: Callable[[], None]) -> None:
    """Run a part; a package that cannot be imported skips it."""
    try:
        part()
    except (Skip, ImportError) as reason:
        traceback.print_exc()
        say(skipped=str(reason) if isinstance(reason, Skip) else f"cannot import: {reason}")
        sys.exit(SKIPPED)


def device() -> str:
    """Return cuda, or cpu for a rehearsal."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def settled() -> float:
    """Seconds on the clock once the device has done all that it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call, until the device has done it."""
    start = settled()
    work()
    return settled() - start


def median_ms(seconds: list[float]) -> float:
    """Milliseconds, rounded."""
    return round(1000 * statistics.median(seconds), 2)


def accelerator(stage: int):
    """An accelerator of this process alone, with DeepSpeed at this ZeRO stage."""
    from align.run.environment import one_process

    os.environ |= one_process(os.environ) | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    backend = "nccl" if device() == "cuda" else "gloo"
    return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend=backend)])
