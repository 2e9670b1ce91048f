"""Check the folder that a run writes to: it can be made, nothing that the run reads stands there, and no other run."""

from __future__ import annotations

import os
from pathlib import Path

from align.config.experiment import Experiment
from align.config.recipe_file import ConfigError
from align.system.lock import HeldError, check_free


def check_out(experiment: Experiment) -> None:
    """Raise `ConfigError` where a run cannot write to `run.out`, or should not."""
    out = Path(experiment.recipe.run.out)
    if str(out).startswith("~"):
        raise ConfigError([f"{out}: ~ is no home here; write the folder's whole path, or one below this directory"])
    check_writable(out)
    if experiment.recipe.model:
        check_apart(out, experiment)
    if experiment.recipe.data:
        check_data_apart(out, experiment)
    try:
        check_free(out)
    except HeldError as error:
        raise ConfigError([str(error)]) from error


def check_writable(out: Path) -> None:
    """Raise `ConfigError` where a run could not make its folder."""
    try:
        out.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # too long, a byte 0
        raise ConfigError([f"{str(out)!r} is no name of a folder: {error}; name another folder"]) from error
    there = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if not there.exists():
        link = f"{there} is a link to {there.readlink()}, which is not there"
        raise ConfigError([f"{link}; make that folder, or name another one"])
    longest = os.pathconf(there, "PC_NAME_MAX")
    if any(len(os.fsencode(part)) > longest for part in out.parts):
        raise ConfigError(
            [f"{str(out)!r} is no name of a folder: a part is longer than {longest}; name another folder"]
        )
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError([f"{there} is {'not writable' if there.is_dir() else 'a file'}; name another folder"])


def check_apart(out: Path, experiment: Experiment) -> None:
    """Raise `ConfigError` where a run would write into, or move away, a model that it reads."""
    model, here = experiment.recipe.model, out.resolve()
    start = model.adapter and model.adapter.start
    for key, name in (("model.policy", model.policy), ("model.guide", model.guide), ("model.adapter.from", start)):
        if not isinstance(name, str) or not (Path(name).is_dir() or name in experiment.stage_recipes):
            continue
        there = Path(name).resolve()
        if here.is_relative_to(there) or there.is_relative_to(here):
            where = "is" if here == there else "is inside" if here.is_relative_to(there) else "holds"
            raise ConfigError([f"{out} {where} {name}, the folder of {key}, which must stay; name another folder"])


def check_data_apart(out: Path, experiment: Experiment) -> None:
    """Raise `ConfigError` where a new run would move away, with an earlier run in its folder, data that it reads. One
    that goes on in place moves nothing."""
    resumed, here = experiment.recipe.run.resume, out.resolve()
    if resumed and Path(resumed).resolve().is_relative_to(here):
        return
    several = len(experiment.recipe.sources()) > 1
    for source, data in experiment.recipe.sources().items():
        for key in ("prompts", "pairs", "bank", "eval_prompts"):
            name = getattr(data, key)
            if name and Path(name).resolve().is_relative_to(here) and os.path.exists(name):
                where = f"data.{source}.{key}" if several else f"data.{key}"
                what = f"{name}, which {where} names, is inside {out}, which a run that starts anew moves away"
                raise ConfigError([f"{what}; keep it elsewhere, or name another folder"])
