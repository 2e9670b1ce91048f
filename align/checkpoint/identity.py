"""Tell one run from another by the recipes they follow, and note what was changed on the way."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from align.checkpoint.checkpoint import CheckpointError
from align.config.compose import with_defaults
from align.config.recipe import Recipe
from align.config.recipe_file import ConfigError

# Keys with which it is another run: its checkpoints do not fit, or its batches are others from the first one on.
SAME = (
    *("model.policy", "model.chat_template", "model.dtype", "model.quantize", "model.adapter"),
    *("optim.optimizer", "run.seed"),
)

ENTRY = re.compile(r"# from step (\d+) on: .+")


@dataclass(frozen=True)
class Change:
    """A key of the recipe that has another value than before."""

    key: str  # dotted
    was: Any  # None: it was not set
    now: Any

    def __str__(self) -> str:
        return f"{json.dumps(self.key)[1:-1]} was {shown(self.was)}, is {shown(self.now)}"


def followed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved recipe without the keys that say where it runs: what a checkpoint keeps of the run that wrote it."""
    run = {key: value for key, value in config["run"].items() if key not in ("out", "resume")}
    return {**config, "run": run}


def recorded(folder: Path) -> dict[str, Any]:
    """The resolved recipe that a run wrote to its folder; {} where there is none. Raises `CheckpointError` where it
    cannot be read."""
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(f"run.resume: {path} cannot be read: {why}; mend it, or start anew") from error
    if not isinstance(config, dict) or not isinstance(config.get("run"), dict):
        raise CheckpointError(f"run.resume: {path} is no recipe (it may be cut); mend it, or start anew")
    return config


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The keys in which two recipes of `followed` differ; none where the earlier one is not known."""
    if "model" not in then:
        return []
    before, after = flat(_filled(then)), flat(now)
    keys = [*after, *(key for key in before if key not in after)]
    return [Change(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """{dotted key: its value in each recipe} for keys in which recorded recipes differ; None where it is not set."""
    recipes = [flat(_filled(followed(config))) for config in configs]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    found = {key: [recipe.get(key) for recipe in recipes] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def check_same(where: Path, changed: Iterable[Change]) -> None:
    """Raise `CheckpointError` where changed keys make it another run than the one in the folder `where`."""
    others = [change for change in changed if any(f"{change.key}.".startswith(f"{key}.") for key in SAME)]
    others = [change for change in others if not _one_place(change)]
    if others:
        what = "; ".join(map(str, others))
        fix = "resume with the recipe that wrote it, or start anew without --resume and run.resume"
        raise CheckpointError(f"run.resume: {where} holds another run: {what}; {fix}")


def history(folder: Path, step: int, changed: Sequence[Change]) -> list[str]:
    """One line for each change of a run's recipe on the way: those noted in a folder's config.yaml that had an effect
    before `step` steps were done, and those that a run which goes on from there makes."""
    path = folder / "config.yaml"
    noted = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    found = [(int(entry[1]), entry[0]) for line in noted if (entry := ENTRY.fullmatch(line))]
    if step == 0:  # nothing was done under the recipe before
        return []
    return [line for first, line in found if first <= step] + [f"# from step {step + 1} on: {c}" for c in changed]


def _one_place(change: Change) -> bool:
    """Whether a model or a chat template is named otherwise and is the same folder or file."""
    places, names = {"model.policy": Path.is_dir, "model.chat_template": Path.is_file}, (change.was, change.now)
    is_there = places.get(change.key)
    if is_there is None or not all(isinstance(name, str) and is_there(Path(name)) for name in names):
        return False
    return Path(change.was).samefile(change.now)


def shown(value: Any) -> str:
    """The value of a key on one line, as plain ASCII: it stands in a comment, and on the terminal."""
    return "not set" if value is None else json.dumps(value, default=str)


def _filled(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recorded recipe with the defaults of keys that are newer than it; as it is where it is no recipe any more."""
    try:
        whole = Recipe.model_validate({**config, "run": {"out": "anywhere", **config["run"]}})
        plain = whole.model_dump(mode="json", by_alias=True, exclude_none=True)
        if "objective" in plain:
            plain |= {"objective": with_defaults(plain["objective"])}
        else:
            plain |= {"objectives": [with_defaults(spec) for spec in plain["objectives"]]}
    except (ValidationError, ConfigError, ValueError, KeyError, TypeError):
        return config
    return followed(plain)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested mappings; a list is one value, and an empty mapping too."""
    if not isinstance(value, Mapping) or not value:
        return {prefix[:-1]: value}
    return {key: leaf for name, item in value.items() for key, leaf in flat(item, f"{prefix}{name}.").items()}
