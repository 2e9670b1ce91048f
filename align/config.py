"""Reading a recipe: its keys, the rules that hold between them, the objects that it names."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from align.calls import RewardFunction
from align.compose import build_objectives
from align.hub import base_problem, check_repo_name
from align.objectives import OBJECTIVES, Objective
from align.recipe import Correct, Data, FromRecipe, Recipe
from align.redact import hub_tokens
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
from align.transforms import Stage

TOKEN = "holds a hub token; take it out of the recipe, revoke it, and set HF_TOKEN"
Rule = Callable[[Recipe, tuple[Objective, ...], Source], list[str]]


@dataclass(frozen=True)
class Experiment:
    """A recipe that was read, checked and built; nothing was loaded yet."""

    recipe: Recipe
    objectives: tuple[Objective, ...]
    rewards: tuple[RewardFunction, ...]
    correct: Correct | None  # None where there are no rewards
    source: Source
    made_by: Mapping[str, str] = field(default_factory=dict)  # {folder: recipe that writes it}
    problems: tuple[str, ...] = ()  # what is wrong; then a section that is not valid is None, and bad rewards left out


def load(path: str | Path, overrides: Iterable[str] = (), rules: Sequence[Rule] | None = None) -> Experiment:
    """Read, check and build a recipe. Raises `ConfigError` with every problem found.

    `rules` between keys: those of a training run where none are given.
    """
    experiment = examine(path, overrides, rules)
    if experiment.problems:
        raise ConfigError(experiment.problems)
    return experiment


def examine(path: str | Path, overrides: Iterable[str] = (), rules: Sequence[Rule] | None = None) -> Experiment:
    """What of a recipe can be built, and its problems. Raises `ConfigError` where the file is no recipe at all."""
    source = read(path, overrides)
    problems: list[str] = []

    def attempt(step):
        try:
            return step()
        except ConfigError as error:
            problems.extend(error.problems)

    source.keys = paths_in(Recipe)
    recipe = attempt(lambda: _validate(source)) or _valid_sections(source)
    objectives = attempt(lambda: build_objectives(source)) or ()
    rewards, wrong = _rewards(recipe, source) if recipe.rewards is not None else ((), [])
    problems += wrong
    for rule in TRAINING if rules is None else rules:
        problems += rule(recipe, objectives, source)
    correct = attempt(lambda: _correct(recipe, rewards, source)) if rewards and not wrong else None
    problems += _hub_problems(recipe, source)
    problems += [source.problem(key, TOKEN) for key in hub_tokens(source.data)]
    made_by = attempt(lambda: _stages(recipe, source)) or {} if recipe.model else {}
    if made_by:
        folders = {name: folder for name, (folder, _) in made_by.items()}
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=folders)})
    return Experiment(recipe, objectives, rewards, correct, source, dict(made_by.values()), tuple(problems))


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


def _rewards(recipe: Recipe, source: Source) -> tuple[tuple[RewardFunction, ...], list[str]]:
    """The functions that could be found, and what is wrong with the others."""
    problems, out = [], []
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
        out.append(RewardFunction(name, reward.fn, reward.weight, reward.args))
    return tuple(out), problems


def _stages(recipe: Recipe, source: Source) -> dict[str, tuple[str, str]]:
    """{key of model: (folder, recipe)} where another recipe makes it; that recipe need not have run yet."""
    out = {}
    for name in ("policy", "guide"):
        stage, key = getattr(recipe.model, name), ("model", name, "from")
        if isinstance(stage, FromRecipe):
            if not Path(stage.recipe).is_file():
                raise ConfigError([source.problem(key, f"{stage.recipe}: no such recipe")])
            data = read(stage.recipe).data
            run, model = data.get("run"), data.get("model")
            if not isinstance(run, Mapping) or not isinstance(run.get("out"), str):
                raise ConfigError([source.problem(key, f"{stage.recipe} has no run.out, so it writes nothing")])
            kind = "adapter" if isinstance(model, Mapping) and model.get("adapter") is not None else "model"
            if name == "policy" and kind == "adapter":
                raise ConfigError(
                    [source.problem(key, f"{stage.recipe} trains an adapter, and a policy is a whole model")]
                )
            out[name] = (f"{run['out']}/{kind}", stage.recipe)
    return out


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
    model, sampling, evaluation, run = recipe.model, recipe.sampling, recipe.eval, recipe.run
    for objective in objectives:
        for link in objective.chain if sampling else ():
            if {"old_logprob", "sampler_logprob"} <= set(link.needs) and sampling.old_logprob == "sampler":
                what = (
                    f"{link.name} needs sampling.old_logprob: trainer; with the sampler's the ratio contains it already"
                )
                problems.append(source.problem(("sampling", "old_logprob"), what))
    if sampling and sampling.sync == "adapter" and model and model.adapter is None:
        problems.append(
            source.problem(("sampling", "sync"), "adapter needs model.adapter; write merged, or leave it out")
        )
    if sampling and sampling.engine == "transformers" and sampling.sync:
        problems.append(
            source.problem(("sampling", "sync"), "the transformers engine shares the weights; leave it out")
        )
    for name, rule in recipe.sentinel.rules.items() if recipe.sentinel and run else ():
        if rule.action == "rollback" and run.save_every is None:
            problems.append(source.problem(("sentinel", name, "action"), "rollback needs checkpoints: run.save_every"))
        elif rule.action == "rollback" and (run.keep - 1) * run.save_every < rule.for_steps - 1:
            need = 1 - (-(rule.for_steps - 1) // run.save_every)
            what = f"it takes {rule.for_steps} steps to see, and by then the checkpoint before is gone: run.keep={need}"
            problems.append(source.problem(("sentinel", name, "action"), what))
    for i, tracker in enumerate(run.trackers if run else ()):
        if importlib.util.find_spec(tracker) is None:
            what = f"{tracker} is not installed; pip install {tracker}"
            problems.append(source.problem(("run", "trackers", i), what))
    if evaluation and max(evaluation.pass_at) > evaluation.samples:
        what = f"pass@{max(evaluation.pass_at)} needs as many eval.samples; there are {evaluation.samples}"
        problems.append(source.problem(("eval", "pass_at"), what))
    return problems


def _source_rules(recipe: Recipe, objectives: tuple[Objective, ...], source: Source) -> list[str]:
    """Whether each source has objectives and rewards, and each objective the data and the models that it reads."""
    problems, sources = [], recipe.sources() if recipe.data else {}
    read = {objective.data for objective in objectives}
    for name, data in sources.items():
        if len(sources) > 1 and objectives and name not in read:
            problems.append(source.problem(("data", name), f"no objective learns from it; write data: {name} in one"))
        key = ("data",) if isinstance(recipe.data, Data) else ("data", name)
        if data.holdout and data.eval_prompts and data.prompts:
            problems.append(source.problem((*key, "holdout"), "leave it out where eval_prompts are given"))
        if (data.prompts or data.eval_prompts) and recipe.rewards in ({}, []):
            problems.append(source.problem(("rewards",), "is empty; name at least one reward function"))
    for i, objective in enumerate(objectives):
        key = _objective_key(i, source)
        problems += _data_problems(objective, sources, source, key)
        if "guide_logprob" in objective.needs and recipe.model and recipe.model.guide is None:
            what = f"missing; {objective.name} needs a guide: an adapter, a model, or {{from: RECIPE}}"
            problems.append(source.problem(("model", "guide"), what))
    return problems


def _data_problems(objective: Objective, sources: dict[str, Data], source: Source, key: Key) -> list[str]:
    if len(sources) > 1 and objective.data is None:
        return [source.problem(key, f"which source does it learn from? Write data: NAME; {nearest('', sources)}")]
    if sources and objective.data is not None and objective.data not in sources:
        what = f"no source is called {objective.data!r}; {nearest(objective.data, sources)}"
        return [source.problem((*key, "data"), what)]
    gives = {name for link in objective.chain for name in link.gives}
    data = sources.get(objective.data) or next(iter(sources.values()), None)
    if data and data.prompts and objective.preference and "chosen" not in gives:
        what = f"{objective.name} learns from pairs; add [{{best_and_worst: {{}}}}] to make them from rollouts"
        return [source.problem(key, f"{what}, or name a data set as data.pairs")]
    dropping = [link.name for link in objective.chain if link.stage is Stage.FILTER]
    if data and data.pairs and objective.pairs and dropping:
        return [source.problem(key, f"{dropping[0]} drops rows, and of a pair of the data both are needed")]
    return []


def _head_rules(recipe: Recipe, objectives: tuple[Objective, ...], source: Source) -> list[str]:
    """What a head gives is trained by one loss of the recipe that says how."""
    problems, heads = [], {}
    for i, objective in enumerate(objectives):
        key = _objective_key(i, source)
        own = [head for loss in objective.losses for head in loss.heads]
        given = {name for head in own for name in head.gives}
        for piece in (*objective.chain, *objective.losses):
            wants = {*getattr(piece, "differentiates", ()), *piece.needs} & {"value", "reward_mask", "kl_mask"}
            learned = wants - given - ({"reward_mask", "kl_mask"} & set(piece.needs))
            if learned:
                giver = "value_loss" if "value" in learned else "pair_logistic_masked"
                problems.append(source.problem(key, f"{piece.name} reads {min(learned)}; add the loss {giver}"))
        for head in own:
            if heads.setdefault(head.name, head) != head:
                what = f"another objective trains the head {head.name!r} with other settings; give both the same"
                problems.append(source.problem(key, what))
    return problems


def _group_rules(recipe: Recipe, objectives: tuple[Objective, ...], source: Source) -> list[str]:
    """What needs several responses to a prompt gets them."""
    problems, sampling, sources = [], recipe.sampling, recipe.sources() if recipe.data else {}
    if sampling is None:
        return []
    for i, objective in enumerate(objectives):
        data = sources.get(objective.data) or next(iter(sources.values()), None)
        if data is None or data.pairs:
            continue
        comparing = [link.name for link in objective.chain if link.compares]
        if sampling.group_size == 1 and comparing:
            what = f"must be at least 2: {comparing[0]} compares the responses of a group"
            problems.append(source.problem(("sampling", "group_size"), what))
            continue
        for piece in (*objective.chain, *objective.losses):
            try:
                piece.check(sampling.group_size)
            except ValueError as error:
                what = f"{piece.name}: {error} (sampling.group_size)"
                problems.append(source.problem(_objective_key(i, source), what))
    if sampling.group_size == 1 and sampling.dynamic_sampling:
        problems.append(source.problem(("sampling", "group_size"), "must be at least 2 with dynamic_sampling"))
    return problems


def _objective_key(i: int, source: Source) -> Key:
    return ("objective",) if source.data.get("objectives") is None else ("objectives", i)


TRAINING: tuple[Rule, ...] = (_cross_rules, _source_rules, _group_rules, _head_rules)
REPLAY: tuple[Rule, ...] = (_cross_rules,)  # recorded rollouts bring along what sources and models would


def _hub_problems(recipe: Recipe, source: Source) -> list[str]:
    """What would keep the result from being pushed. A section that is None was found wrong before."""
    if recipe.hub is None:
        return []
    problems, model, goal = [], recipe.model, recipe.target()
    try:
        check_repo_name(goal.repo)
    except ValueError as error:
        problems.append(source.problem(("hub",), str(error)))
    if model and model.adapter:
        base = model.policy.recipe if isinstance(model.policy, FromRecipe) else model.policy
        if (what := base_problem(base)) is not None:
            problems.append(source.problem(("hub",), what))
    if goal.gate and recipe.data and not any(data.holdout or data.eval_prompts for data in recipe.sources().values()):
        problems.append(source.problem(("hub", "gate"), "needs an evaluation; write data.holdout or data.eval_prompts"))
    return problems
