"""Fill in the keys whose default depends on the model, the data or the machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import PretrainedConfig

from align.check.machine import unfit
from align.check.model_files import skeleton
from align.config.experiment import Experiment
from align.config.launch import Launch
from align.config.recipe import Recipe
from align.config.recipe_file import ConfigError
from align.config.sampling_keys import Sampling
from align.data.prompts import Prompts
from align.model import layouts
from align.model.recompute import layers
from align.rollout.sync_check import TOLERANCE
from align.system.hardware import Hardware

LARGE = 1  # billions of parameters above which a GPU computes layers again instead of keeping all of their activations


@dataclass(frozen=True)
class Choice:
    """A value that a run takes for a key that its recipe leaves open."""

    section: str
    key: str
    value: Any
    why: str


def fill_defaults(
    experiment: Experiment, model_config: PretrainedConfig, launch: Launch
) -> tuple[Experiment, list[Choice]]:
    """(the experiment with its defaults filled in, what was chosen). Raises `ConfigError` for keys that do not fit
    model or machine."""
    chosen = list(choices(experiment.recipe, model_config, launch))
    recipe = _with(experiment.recipe, *chosen)
    if problems := [experiment.file.problem(*found) for found in unfit(recipe, model_config, launch)]:
        raise ConfigError(problems)
    return replace(experiment, recipe=recipe.model_copy(update={"correct": experiment.correct})), chosen


def fill_dtype(experiment: Experiment, hardware: Hardware) -> Experiment:
    """Fill in `model.dtype` alone, which banks depend on too."""
    return replace(experiment, recipe=_with(experiment.recipe, *_dtype(experiment.recipe, hardware)))


def choices(recipe: Recipe, model_config: PretrainedConfig, launch: Launch) -> Iterator[Choice]:
    """What a run takes for the keys that the recipe leaves open and that depend on model or machine."""
    hardware, sampling, optim = launch.hardware, recipe.sampling, recipe.optim
    yield from _dtype(recipe, hardware)
    recipe = _with(recipe, *_dtype(recipe, hardware))
    if optim.layout is None:
        layout = layouts.choose(None, model_config)
        yield Choice("optim", "layout", layout, "the fastest that the model can")
    if sampling.engine != "transformers" and sampling.sync is None:
        yield _sync(recipe, hardware)
    yield from _engine(sampling, hardware)
    if sampling.tolerance is None:
        dtype = recipe.model.dtype
        yield Choice("sampling", "tolerance", TOLERANCE[dtype], f"as engines round in {dtype}")
    if optim.checkpoint_activations is None:
        yield _checkpointing(hardware, model_config)
    if recipe.eval.temperature is None:
        yield Choice("eval", "temperature", sampling.temperature, "as in training")


def _dtype(recipe: Recipe, hardware: Hardware) -> Iterator[Choice]:
    if recipe.model.dtype != "auto":
        return
    if hardware.is_gpu and hardware.bfloat16:
        yield Choice("model", "dtype", "bfloat16", "on GPUs, with float32 master weights")
    else:
        why = "on a CPU" if not hardware.is_gpu else "for this GPU has no bfloat16"
        yield Choice("model", "dtype", "float32", why)


def _sync(recipe: Recipe, hardware: Hardware) -> Choice:
    if not recipe.model.adapter:
        return Choice("sampling", "sync", "merged", "for all weights are trained")
    if recipe.model.quantize:
        return Choice("sampling", "sync", "adapter", "over the base in 4 bits, as it is trained and published")
    if hardware.is_gpu and recipe.model.dtype == "bfloat16":
        return Choice("sampling", "sync", "adapter", "on GPUs, for it is smaller and not rounded")
    why = "for vLLM's LoRA kernels for GPUs take no float32" if hardware.is_gpu else "on a CPU, where it samples faster"
    return Choice("sampling", "sync", "merged", why)


def _checkpointing(hardware: Hardware, model_config: PretrainedConfig) -> Choice:
    section, key = "optim", "checkpoint_activations"
    if not hardware.is_gpu:
        return Choice(section, key, False, "on a CPU, where time is scarcer than memory")
    model = skeleton(model_config, "model.policy")
    billions = sum(p.numel() for p in model.parameters()) / 1e9
    if not layers(model):
        return Choice(section, key, False, "for the layers of this model cannot be computed again")
    size = "above" if billions > LARGE else "not above"
    return Choice(section, key, billions > LARGE, f"on GPUs, with {billions:.2g}B parameters, {size} {LARGE}B")


def _engine(sampling: Sampling, hardware: Hardware) -> Iterator[Choice]:
    """The size of the engine. A GPU's cache stays open until the trainer is loaded: it is a share of the rest."""
    on_gpu = hardware.is_gpu
    if sampling.cache_gib is None and not on_gpu:
        yield Choice("sampling", "cache_gib", 1.0, "on a CPU")
    if sampling.max_sequences is None:
        value, why = (256, "on GPUs, as vLLM's own default") if on_gpu else (64, "on a CPU")
        yield Choice("sampling", "max_sequences", value, why)
    if sampling.sleep is None and on_gpu and sampling.engine != "server":
        yield Choice("sampling", "sleep", True, "on GPUs, so that the update has the cache's memory")


def _with(recipe: Recipe, *chosen: Choice) -> Recipe:
    """The recipe with these values."""
    for choice in chosen:
        section = getattr(recipe, choice.section).model_copy(update={choice.key: choice.value})
        recipe = recipe.model_copy(update={choice.section: section})
    return recipe


def fill_steps(experiment: Experiment, sources: Mapping[str, Prompts]) -> Experiment:
    """Turn epochs and shares into steps: those of the run, of its schedules, and of the warm-up.

    An epoch takes as many prompts as all sources train on.
    """
    run, optim = experiment.recipe.run, experiment.recipe.optim
    steps = run.steps
    if steps is None:
        trained = sum(len(source.train) for source in sources.values())
        per_step = sum(data.prompts_per_step for data in experiment.recipe.sources().values())
        steps = math.ceil(run.epochs * trained / per_step)
    span = optim.schedule_steps or steps
    warmup = optim.warmup_steps if optim.warmup_share is None else round(optim.warmup_share * span)
    filled = {
        "run": run.model_copy(update={"steps": steps, "epochs": None}),
        "optim": optim.model_copy(update={"schedule_steps": span, "warmup_steps": warmup, "warmup_share": None}),
    }
    return replace(experiment, recipe=experiment.recipe.model_copy(update=filled))
