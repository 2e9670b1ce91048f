"""Collect what a check finds: problems, and results that its next part builds on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from align.check.defaults import Choice
from align.checkpoint.checkpoint import CheckpointError
from align.config.data_keys import Data
from align.config.experiment import Experiment
from align.config.launch import Launch
from align.config.recipe_file import KeyPath
from align.data import bank
from align.data.prompts import Prompts
from align.data.store import Stored
from align.model.load import UNREADABLE
from align.model.locate import ModelError
from align.system.problems import ProblemList


class CheckError(ProblemList):
    """A run would fail."""


@dataclass
class Survey:
    """The findings of a check so far; None stands for what a problem hides."""

    experiment: Experiment  # its defaults filled in once the model's configuration is known
    launch: Launch
    problems: list[str] = field(default_factory=list)
    chosen: list[Choice] = field(default_factory=list)  # values of keys that the recipe leaves open
    missing_stages: list[str] = field(default_factory=list)  # models that another recipe must train first
    notes: list[str] = field(default_factory=list)  # what would run, and may not be what was meant
    staged_template: str | None = None  # model.chat_template of the recipe that must make the policy first
    path: str | None = None  # folder with the policy's configuration and tokenizer; of a hub name without weights
    tokenizer: PreTrainedTokenizerBase | None = None
    ends: list[int] | None = None  # ids of the tokens that end a response
    config: PretrainedConfig | None = None
    skeleton: nn.Module | None = None  # the policy with its adapter on the meta device
    rows: dict[str, Stored] = field(default_factory=dict)  # {source: rows that could be read}
    sources: dict[str, Prompts] = field(default_factory=dict)
    banks: dict[str, bank.Bank] = field(default_factory=dict)
    context: int | None = None  # most tokens of prompt and response; None where nothing is sampled
    guide_is_adapter: bool | None = None  # None where there is none, or none that can be used

    def attempt(self, step: Callable[..., Any], *arguments: Any, key: KeyPath | None = None) -> Any:
        """Return what the step returns; where it raises what a user can mend, note it at `key` and return None."""
        try:
            return step(*arguments)
        except ProblemList as error:
            found = error.problems
        except (ModelError, CheckpointError) as error:
            found = [str(error)]
        except UNREADABLE as error:
            found = [f"a file of it cannot be used: {type(error).__name__}: {error}; copy or save it again"]
        name = ".".join(map(str, key or ()))
        place = self.experiment.file.problem
        self.problems += [place(key, text.removeprefix(f"{name}: ")) if key else self.placed(text) for text in found]
        return None

    def placed(self, text: str) -> str:
        """Put the recipe's line before a problem that begins with its key `data`, or one below it."""
        name, _, what = text.partition(": ")
        key = tuple(name.split("."))
        known = {*Data.model_fields, *(self.experiment.recipe.sources() if self.experiment.recipe.data else ())}
        is_key = key[0] == "data" and (len(key) == 1 or key[1] in known)
        return self.experiment.file.problem(key, what) if is_key else text
