"""Read a recipe: its keys, the rules that hold between them, the objects that it names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from align.config import locations
from align.config.compose import argument_paths, build_objectives
from align.config.environment_keys import Environment
from align.config.factories import check_path, check_survives, load_object
from align.config.model_keys import FromRecipe
from align.config.problems import BOOLEAN, booleans, explain, names_at, nearest, paths_in
from align.config.recipe import Correct, Recipe, RewardFunction
from align.config.recipe_file import ConfigError, KeyPath, RecipeFile, read
from align.config.redact import hub_tokens
from align.config.rules import TRAINING, Rule, hub_problems
from align.objectives.objective import Objective

TOKEN = "holds a hub token; take it out of the recipe, revoke it, and set HF_TOKEN"


@dataclass(frozen=True)
class Experiment:
    """A recipe that was read, checked and built; nothing of models or data is loaded yet."""

    recipe: Recipe
    objectives: tuple[Objective, ...]
    rewards: tuple[RewardFunction, ...]  # those of environments first
    correct: Correct | None  # None where there are no rewards
    file: RecipeFile
    callbacks: Mapping[str, Callable] = field(default_factory=dict)  # {dotted path: function} of run.callbacks
    stage_recipes: Mapping[str, str] = field(default_factory=dict)  # {folder: recipe that writes it}
    problems: tuple[str, ...] = ()  # what is wrong: a section that is not valid is None then, and bad rewards left out

    @property
    def reward_functions(self) -> list[RewardFunction]:
        """The rewards that functions give."""
        return [reward for reward in self.rewards if reward.given_by == "function"]


def load_experiment(path: str | Path, overrides: Iterable[str] = (), rules: Sequence[Rule] | None = None) -> Experiment:
    """Read, check and build a recipe. Raises `ConfigError` with every problem found.

    `rules` between keys: those of a training run where none are given.
    """
    experiment = examine(path, overrides, rules)
    if experiment.problems:
        raise ConfigError(experiment.problems)
    return experiment


def examine(path: str | Path, overrides: Iterable[str] = (), rules: Sequence[Rule] | None = None) -> Experiment:
    """Build what can be built of a recipe, and note its problems. Raises `ConfigError` where the file is no recipe."""
    file = read(path, overrides)
    locations.import_from(file.folder)
    problems = _clashes(file)

    def attempt(step):
        """Return what the step gives; note its problems and return None where it raises."""
        try:
            return step()
        except ConfigError as error:
            problems.extend(error.problems)

    file.keys = paths_in(Recipe)
    recipe = attempt(lambda: _validate(file)) or _valid_sections(file)
    objectives = attempt(lambda: build_objectives(file)) or ()
    rewards, wrong = _rewards(recipe, file) if recipe.rewards is not None else ((), [])
    problems += wrong
    for rule in TRAINING if rules is None else rules:
        problems += rule(recipe, objectives, file)
    correct = attempt(lambda: _correct(recipe, rewards, file)) if rewards and not wrong else None
    callbacks = attempt(lambda: _callbacks(recipe, file)) or {} if recipe.run else {}
    problems += hub_problems(recipe, file)
    problems += [file.problem(key, TOKEN) for key in hub_tokens(file.data)]
    stage_recipes = attempt(lambda: _stages(recipe, file)) or {} if recipe.model else {}
    if stage_recipes:
        folders = {name: folder for name, (folder, _) in stage_recipes.items()}
        if "adapter" in folders:
            folders["adapter"] = recipe.model.adapter.model_copy(update={"start": folders["adapter"]})
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=folders)})
    stages = dict(stage_recipes.values())
    return Experiment(recipe, objectives, rewards, correct, file, callbacks, stages, tuple(problems))


def _clashes(file: RecipeFile) -> list[str]:
    """Find modules of the user's that have the name of an installed one, where the recipe names either."""
    found: dict[str, KeyPath] = {}
    for key, text in file.texts():
        if what := locations.clash(text, file.folder):
            found.setdefault(what, key)
    return [file.problem(key, what) for what, key in found.items()]


def _validate(file: RecipeFile) -> Recipe:
    problems = [file.problem(place, BOOLEAN) for place in booleans([Recipe], file.data)]
    try:
        recipe = Recipe.model_validate(file.data)
    except ValidationError as error:
        known = replace(file, keys=[*file.keys, *argument_paths(file.data)])
        problems += explain(error, file.data, known, (), partial(names_at, Recipe))
    if problems:
        raise ConfigError(problems)
    return recipe


def _valid_sections(file: RecipeFile) -> Recipe:
    """Read a wrong recipe as far as it goes: None stands for each section that is not valid by itself."""
    sections = {}
    for name, info in Recipe.model_fields.items():
        value = file.data.get(name, info.get_default())
        try:
            sections[name] = TypeAdapter(info.annotation).validate_python(value)
        except ValidationError:
            sections[name] = None
    return Recipe.model_construct(**sections)


def _rewards(recipe: Recipe, file: RecipeFile) -> tuple[tuple[RewardFunction, ...], list[str]]:
    """(rewards, problems of those whose path is none). None is imported here: that is for processes of their own, which
    the check of a run starts."""
    problems, out = [], []
    for name, environment in recipe.environments().items():
        key = ("environment", "name") if isinstance(recipe.environment, Environment) else ("environment", name, "name")
        try:
            check_path(environment.name)
        except ValueError as error:
            problems.append(file.problem(key, str(error)))
        out.append(RewardFunction(name, environment.name, environment.weight, environment.args, key, "environment"))
    for i, reward in enumerate(recipe.reward_list()):
        key: KeyPath = ("rewards", i, "fn") if isinstance(recipe.rewards, list) else ("rewards", reward.fn)
        try:
            check_path(reward.fn)
        except ValueError as error:
            problems.append(file.problem(key, str(error)))
            continue
        name, used = reward.fn.partition(":")[2], {other.name for other in out}
        if name in used:
            name = next(numbered for n in count(1) if (numbered := f"{name}_{n}") not in used)
        out.append(RewardFunction(name, reward.fn, reward.weight, reward.args, key))
    return tuple(out), problems


def _callbacks(recipe: Recipe, file: RecipeFile) -> dict[str, Callable]:
    """{dotted path: function that takes a step and its metrics} of `run.callbacks`. Raises `ConfigError`."""
    out, problems = {}, []
    for i, path in enumerate(recipe.run.callbacks):
        try:
            check_path(path)
            check_survives(path, lambda _: None)
            out[path] = load_object(path)
            if not inspect.isfunction(out[path]):
                raise ValueError(f"{path} is not a function")
            inspect.signature(out[path]).bind(1, {})
        except TypeError as error:
            what = f"{path} cannot be called with a step and its metrics: {error}; write def f(step, metrics)"
            problems.append(file.problem(("run", "callbacks", i), what))
        except ValueError as error:
            problems.append(file.problem(("run", "callbacks", i), str(error)))
    if problems:
        raise ConfigError(problems)
    return out


def _stages(recipe: Recipe, file: RecipeFile) -> dict[str, tuple[str, str]]:
    """{key of the section model: (folder, recipe)} where another recipe makes it; it need not have run yet."""
    model, out = recipe.model, {}
    stages = {name: getattr(model, name) for name in ("policy", "guide")}
    stages = {name: stage.recipe for name, stage in stages.items() if isinstance(stage, FromRecipe)}
    if model.adapter and str(model.adapter.start).endswith((".yaml", ".yml")):
        stages["adapter"] = model.adapter.start
    for name, stage in stages.items():
        key = ("model", name, "from")
        if not Path(stage).is_file():
            raise ConfigError([file.problem(key, f"{stage}: no such recipe")])
        data = read(stage).data
        run, model = data.get("run"), data.get("model")
        if not isinstance(run, Mapping) or not isinstance(run.get("out"), str):
            raise ConfigError([file.problem(key, f"{stage} has no run.out, so it writes nothing")])
        kind = "adapter" if isinstance(model, Mapping) and model.get("adapter") is not None else "model"
        if name == "policy" and kind == "adapter":
            what = f"{stage} trains an adapter, and a policy is a whole model; to go on from it name its base here"
            raise ConfigError([file.problem(key, f"{what} and write model.adapter: {{from: {stage}}}")])
        if name == "adapter" and kind == "model":
            what = f"{stage} trains a whole model; name it as model.policy: {{from: {stage}}}"
            raise ConfigError([file.problem(key, what)])
        out[name] = (f"{run['out']}/{kind}", stage)
    return out


def _correct(recipe: Recipe, rewards: tuple[RewardFunction, ...], file: RecipeFile) -> Correct:
    """The section `correct` with the name of its reward, by default the first one."""
    if recipe.correct is None:
        return Correct(reward=rewards[0].name)
    names = [reward.name for reward in rewards]
    name = recipe.correct.reward.rpartition(":")[2]
    if name not in names:
        raise ConfigError(
            [file.problem(("correct", "reward"), f"no reward is called {name!r}; {nearest(name, names)}")]
        )
    return recipe.correct.model_copy(update={"reward": name})
