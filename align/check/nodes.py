"""Check that all nodes of a run have the same recipe, code, versions, model and data; tell which folders they share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import gather_object

from align.check.requirements import CheckedRun
from align.checkpoint.identity import flat, shown
from align.checkpoint.provenance import decided, resolved, versions
from align.config.recipe_file import ConfigError
from align.data.prompts import fingerprint
from align.system import files
from align.system.node import machine_of, machines


@dataclass(frozen=True)
class Has:
    """What a machine of the run has, as far as it decides the run."""

    machine: str  # its name and its ranks
    facts: Mapping[str, str]  # {what: its value, or a hash of it}
    places: Mapping[str, tuple[int, ...]]  # {folder or file that the recipe names: what tells it from a copy}


def check_nodes(checked: CheckedRun) -> list[str]:
    """Return what the nodes of a run share, a line each; nothing for a run on one machine. Collective.

    Raises `ConfigError` on all ranks where something that decides the run is not the same on all machines.
    """
    if machines() == 1:
        return []
    mine = [has(checked)] if os.environ["LOCAL_RANK"] == "0" else []
    everyone = gather_object(mine)
    if problems := differences(everyone):
        raise ConfigError(problems)
    out, node = checked.experiment.recipe.run.out, checked.node
    lines = [f"{len(everyone)} nodes: {', '.join(one.machine for one in everyone)}"]
    apart = f"not shared: each node keeps its ranks' part of a checkpoint; logs and result are on {everyone[0].machine}"
    return [*lines, f"run.out {out}: {'shared by all nodes' if node.alone else apart}", *shared(everyone)]


def has(checked: CheckedRun) -> Has:
    """What this machine has."""
    experiment, recipe = checked.experiment, checked.experiment.recipe
    model, whole = recipe.model, decided(experiment)
    facts = {key: shown(value) for key, value in flat(resolved(experiment)).items()}
    facts |= {f"the code of {name}": digest for name, digest in whole["files"].items()}
    facts |= {f"the version of {name}": version for name, version in versions().items()}
    facts |= {f"the content of model.{name}": whole[name] for name in ("chat_template", "start") if name in whole}
    folders = {"model.policy": checked.path, "model.guide": model.guide or ""}
    for key, folder in folders.items():
        if Path(folder).is_dir() and folder:
            facts |= {f"{key}: {folder}/{name}": digest for name, digest in files.glimpses(Path(folder)).items()}
    for name, source in checked.sources.items():
        rows = {"rows": source.train, "held-out rows": source.held_out}
        facts |= {f"data: the {kind} of {name}": fingerprint(found)[:16] for kind, found in rows.items()}
    named = [(f"data.{key}", getattr(data, key)) for data in recipe.sources().values() for key in FILES]
    places = [*folders.items(), *named]
    there = {f"{key} {place}": files.identity(Path(place)) for key, place in places if place and os.path.exists(place)}
    return Has(machine_of(), facts, there)


FILES = ("prompts", "pairs", "bank", "eval_prompts")  # keys of data that may name a file


def differences(machines: Sequence[Has]) -> list[str]:
    """What is not the same on all machines: what, where, and the fix; the first machine is taken as right."""
    first, out = machines[0], []
    for other in machines[1:]:
        for what in dict.fromkeys([*first.facts, *other.facts]):
            was, now = first.facts.get(what, "missing"), other.facts.get(what, "missing")
            if was != now:
                out.append(f"{what} is {was} on {first.machine} and {now} on {other.machine}")
    fix = "every node needs the same: copy it, and start all nodes with the same words"
    return [f"{problem}; {fix}" for problem in out[:MOST]]


MOST = 8  # lines: another model or version differs in much


def shared(machines: Sequence[Has]) -> list[str]:
    """For each folder or file that the recipe names whether all machines see one, or a copy each."""
    out = []
    for place, identity in machines[0].places.items():
        one = all(machine.places.get(place) == identity for machine in machines)
        out.append(f"{place}: {'shared by all nodes' if one else 'a copy on each node, of the same content'}")
    return out
