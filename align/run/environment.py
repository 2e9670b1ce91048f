"""Set up the process before torch is imported: quiet libraries, and one process where no launcher started it.

It imports no library that reads its environment when it is imported.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

from align.config.recipe_file import ConfigError, read
from align.run.arguments import Asked, parse
from align.system.parent import LAUNCHER, end_with_launcher

VERBOSE = "ALIGN_VERBOSE"

QUIET = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # lines of torch's C++ such as `[rank0]:[W1129 ...`; its errors stay
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TQDM_DISABLE": "1",  # converting a model would give a line for each percent
}

EXPECTED = {  # {logger: how a warning begins that each start on a CPU gives}
    "DeepSpeed": "Setting accelerator to CPU",
    "vllm.triton_utils.importing": "Triton is installed, but doesn't include CPU backend",  # before levels are read
}

# What shows that a launcher has set the environment of one process among several, or of DeepSpeed.
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_USE_DEEPSPEED")
BY_ACCELERATE = "ACCELERATE_MIXED_PRECISION"  # alone where `accelerate launch` has no config file

ALONE = (
    "one process, as with launch/cpu.yaml; for several: "
    "accelerate launch --config_file launch/cpu_zero2.yaml recipes/train.py ... (GPUs: launch/zero2.yaml)"
)


def prepare(words: Sequence[str]) -> None:
    """Set environment and loggers for the run that the command line asks for. Call it before torch is imported.

    Ends the process where the command line is wrong or asks for help: importing takes seconds.
    """
    end_with_launcher()
    note_launcher()
    asked = parse(words)
    if isinstance(asked, int):
        sys.exit(asked)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while libraries are imported
    if set_environment(wants_verbose(asked)):
        print(ALONE, flush=True)


def note_launcher() -> None:
    """Note which process started this one where that was a launcher."""
    os.environ.pop(LAUNCHER, None)
    if any(name in os.environ for name in (*LAUNCHED, BY_ACCELERATE)):
        os.environ[LAUNCHER] = str(os.getppid())


def set_environment(loud: bool = False) -> bool:
    """Set what torch, DeepSpeed and vLLM read when they are imported; whether this is one process without a launcher.

    `loud`: libraries may print what they like, as where the environment says so.
    """
    if loud:
        os.environ[VERBOSE] = "1"
    if verbose():
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")  # where nothing is said its engine would be quiet
    else:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        for name in EXPECTED:
            logging.getLogger(name).addFilter(unexpected)
    alone = one_process(os.environ)
    if alone:
        os.environ.update(alone)
        sys.path.insert(1, os.getcwd())  # as a launcher does: rewards of the recipe may stand there
    return bool(alone)


def verbose() -> bool:
    """Whether libraries may print what they like."""
    return os.environ.get(VERBOSE, "0") not in ("", "0")


def wants_verbose(asked: Asked) -> bool:
    """Whether `run.verbose` is true in the recipe or on the command line; False where the recipe cannot be read, which
    is told later."""
    try:
        run = read(asked.recipe, asked.overrides).data.get("run")
    except (ConfigError, OSError):
        return False
    return isinstance(run, Mapping) and run.get("verbose") is True


def unexpected(record: logging.LogRecord) -> bool:
    """Let a line of a log pass unless it is the EXPECTED one."""
    return not record.getMessage().startswith(EXPECTED[record.name])


def one_process(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what `accelerate launch --config_file launch/cpu.yaml` sets for its process, with a free port; {} where a
    launcher has set the environment. `accelerate launch` without a config file leaves it to us."""
    if any(name in environment for name in LAUNCHED):
        return {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_CONFIG_DS_FIELDS": "zero_stage,gradient_accumulation_steps,zero3_init_flag,mixed_precision",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0",
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
        "ACCELERATE_MIXED_PRECISION": "no",
    }
