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
from align.config.redact import scrub, scrub_tracebacks
from align.model.locate import ModelError, locate
from align.rollout.server_arguments import ENTRY, ENVIRONMENT, is_loopback, server_arguments
from align.rollout.server_token import token
from align.system.hardware import here
from align.system.text import for_terminal

ERRORS = (ConfigError, CheckError, ModelError)


def serve(recipe: str, overrides: Sequence[str]) -> None:
    """Replace this process by the server at HOST and PORT of the environment. Raises one of `ERRORS`."""
    host, port = os.environ.get("HOST", "127.0.0.1"), os.environ.get("PORT", "8000")
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError([f"PORT={port} is no port; write a number, such as PORT=8000"])
    port = int(port)
    found = surveyed(recipe, overrides)
    sampling = found.experiment.recipe.sampling
    if problem := exposed(host, port, sampling.servers):
        raise ConfigError([problem])
    path = locate(found.experiment.recipe.model.policy)
    try:
        words = server_arguments(path, found.experiment.recipe, found.context, here(), host, port)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
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


def main(words: Sequence[str]) -> int:
    """Serve as `RECIPE [key=value ...]` says; the exit code where that is not possible."""
    scrub_tracebacks()
    try:
        serve(words[0], words[1:])
    except (*ERRORS, FileNotFoundError) as error:
        print(for_terminal(scrub(str(error))), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
