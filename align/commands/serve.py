"""Start a vLLM server that fits a recipe; `launch/serve.sh` calls it. It becomes the server: nothing of this stays."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

from align.check.check import survey
from align.check.survey import CheckError, Survey
from align.config.experiment import examine
from align.config.launch import Launch
from align.config.recipe_file import ConfigError
from align.model.locate import locate
from align.rollout.server_arguments import ENTRY, ENVIRONMENT, is_loopback, server_arguments, token
from align.system.hardware import here


def serve(recipe: str, overrides: Sequence[str], host: str, port: int) -> None:
    """Replace this process by the server. Raises `ConfigError`, `CheckError` and `ModelError`."""
    found = surveyed(recipe, overrides)
    sampling = found.experiment.recipe.sampling
    if problem := exposed(host, port, sampling.servers):
        raise ConfigError([problem])
    path = locate(found.experiment.recipe.model.policy)
    words = server_arguments(path, found.experiment.recipe, found.context, here(), host, port)
    command = [sys.executable, "-m", ENTRY, *words]
    print(f"vLLM server for {recipe} on http://{host}:{port}, sampling.sync: {sampling.sync}", flush=True)
    os.execve(command[0], command, {**os.environ, **ENVIRONMENT})


def surveyed(recipe: str, overrides: Sequence[str]) -> Survey:
    """What a server needs to know of a recipe: its model, its defaults, its longest prompt. Raises `ConfigError` and
    `CheckError`; what only a trainer needs may be wrong."""
    experiment = examine(recipe, overrides)
    if experiment.problems:
        raise ConfigError(experiment.problems)
    found = survey(experiment, Launch(hardware=here()))
    if found.context is None or found.config is None:
        raise CheckError(found.problems or [f"{recipe}: nothing is sampled, so it needs no server"])
    return found


def exposed(host: str, port: int, servers: Sequence[str]) -> str | None:
    """Why a server must not listen there; None where nobody but this machine, or who has the token, or the recipe's
    own address, can reach it."""
    named = {(found.hostname, found.port) for found in map(urlsplit, servers)}
    if is_loopback(host) or token() or (host, port) in named:
        return None
    what = f"HOST={host}: whoever reaches it could change its weights"
    return f"{what}; set ALIGN_SERVER_TOKEN here and for the trainer, or name http://{host}:{port} in sampling.servers"
