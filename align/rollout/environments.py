"""The environments of a recipe on this rank: what makes their instances, and what each row is played in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from align.config import environment_keys
from align.config.recipe import Recipe
from align.config.sampling_keys import Sampling
from align.data.prompts import Prompt
from align.environments import contract
from align.environments.contract import Description, Limits
from align.environments.nursery import Nursery


@dataclass(frozen=True)
class Environment:
    """An environment of the recipe, on this rank."""

    name: str
    keys: environment_keys.Environment
    nursery: Nursery
    offers: Description


@dataclass(frozen=True)
class Environments:
    """All that a rank needs to play: the environments, and what turns their words into tokens."""

    by_name: Mapping[str, Environment]
    sampling: Sampling
    context: int  # most tokens of prompt and response together
    tokenizer: PreTrainedTokenizerBase
    ends: Sequence[int]  # ids of the tokens that end a turn of the policy

    def of(self, prompt: Prompt) -> Environment:
        """The environment of a row: the only one, or the one that its column names."""
        if len(self.by_name) == 1:
            return next(iter(self.by_name.values()))
        return self.by_name[prompt.columns["environment"]]

    def row(self, prompt: Prompt) -> dict[str, Any]:
        """What `reset` is called with."""
        return row_of(prompt, len(self.by_name) > 1)

    def close(self) -> None:
        """End all processes of instances."""
        for environment in self.by_name.values():
            environment.nursery.close()


def row_of(prompt: Prompt, several: bool) -> dict[str, Any]:
    """The columns of a row, `prompt` among them; of several environments without the one that chooses, as in TRL."""
    columns = {name: value for name, value in prompt.columns.items() if not (several and name == "environment")}
    return {"prompt": prompt.prompt, **columns}


def start(recipe: Recipe, rank: int) -> dict[str, Nursery]:
    """{environment: what makes its instances}; what they print goes to a file of this rank in `run.out`."""
    folder, end = Path(recipe.run.out) / "environments", f"-{rank}.log" if rank else ".log"
    return {name: nursery(name, keys, folder / f"{name}{end}") for name, keys in recipe.environments().items()}


def nursery(name: str, keys: environment_keys.Environment, log: Path | None = None) -> Nursery:
    """What makes the instances of an environment of the recipe; it loads meanwhile."""
    limits = Limits(keys.seconds, keys.memory_gib, keys.at_once)
    return Nursery(contract.Environment(name, keys.name, keys.args, keys.contract), limits, log)
