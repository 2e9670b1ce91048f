"""Bring the machines of a run together at its start."""

from __future__ import annotations

import os
from datetime import timedelta

from torch.distributed.distributed_c10d import _set_pg_timeout

from align.config.recipe_file import ConfigError
from align.system import network, roll
from align.system.node import machines
from align.system.roll import NotJoined

PATIENCE = timedelta(hours=6)  # of ranks for each other; what can hang has limits of its own

JOIN_S = 300.0  # of machines for each other at the start


def meet() -> timedelta:
    """Wait until all machines are there; how long their processes may take to connect. Raises `ConfigError` that names
    the machines that are missing, or says why this one cannot be reached."""
    if machines() == 1:
        return PATIENCE
    if problem := network.choose_interface(os.environ["MASTER_ADDR"]):
        raise ConfigError([problem])
    seconds = float(os.environ.get(roll.JOIN, JOIN_S))
    try:
        roll.call(seconds)
    except NotJoined as error:
        raise ConfigError([str(error)]) from error
    return timedelta(seconds=seconds)


def be_patient() -> None:
    """Give the processes, which are connected now, all the time they need for what they wait for."""
    if machines() > 1:
        _set_pg_timeout(PATIENCE)
