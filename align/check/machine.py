"""Find keys of a recipe that do not fit its model or the machine that it is launched on."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PretrainedConfig

from align.check.model_files import skeleton
from align.config.launch import Launch, engine_stage
from align.config.recipe import Recipe
from align.config.recipe_file import KeyPath
from align.model import layouts
from align.model.adapters import experts
from align.model.quantize import why_not
from align.model.recompute import layers
from align.rollout.engine_arguments import parallel_problem, sleep_problem, sync_problem


def unfit(recipe: Recipe, config: PretrainedConfig, launch: Launch) -> Iterator[tuple[KeyPath, str]]:
    """(key, what is wrong with it and how to mend it) of each such key; of a recipe with its defaults filled in."""
    sampling, hardware = recipe.sampling, launch.hardware
    found = {
        ("optim", "layout"): layout_problem(recipe, config),
        ("optim", "checkpoint_activations"): checkpoint_problem(recipe, config),
        ("optim", "offload_optimizer"): offload_problem(recipe, launch),
        ("sampling", "engine"): engine_problem(recipe, launch),
        ("sampling", "sync"): sync_problem(recipe, hardware) or expert_problem(recipe, config, launch),
        ("sampling", "tensor_parallel"): parallel_problem(sampling, config, launch.each),
        ("sampling", "sleep"): sleep_problem(sampling, hardware),
        ("model", "quantize"): quantize_problem(recipe, config, launch),
    }
    yield from ((key, problem) for key, problem in found.items() if problem)


def layout_problem(recipe: Recipe, config: PretrainedConfig) -> str | None:
    """Why rows cannot be laid out as the recipe says; None where they can."""
    try:
        layouts.choose(recipe.optim.layout, config)
    except ValueError as error:
        return str(error)
    return None


def checkpoint_problem(recipe: Recipe, config: PretrainedConfig) -> str | None:
    """Why layers cannot be computed again; None where they can, or need not."""
    if recipe.optim.checkpoint_activations and not layers(skeleton(config, recipe.model.policy)):
        kind = config.get_text_config().model_type
        return f"the layers of {kind} cannot be computed again (they are no GradientCheckpointingLayer); write false"
    return None


def offload_problem(recipe: Recipe, launch: Launch) -> str | None:
    """Why the optimiser's states cannot be where the recipe wants them; None where they can."""
    where = recipe.optim.offload_optimizer
    if where == "none":
        return None
    if not launch.hardware.is_gpu:
        return f"{where} would change nothing: on a CPU they are in host memory; leave it out"
    stage = engine_stage(launch.zero_stage, recipe.model.dtype)
    if where == "cpu" and stage == 0:
        return "cpu needs ZeRO; launch with launch/zero2.yaml, or leave it out"
    if where == "between_steps" and stage == 3:
        return "between_steps cannot be under ZeRO-3, where DeepSpeed moves only states of its own Adam; write cpu"
    if where == "between_steps" and stage != 2:
        return "between_steps needs ZeRO-2; launch with launch/zero2.yaml, or leave it out"
    return None


def engine_problem(recipe: Recipe, launch: Launch) -> str | None:
    """Why the engine cannot sample from the trainer's weights; None where it can."""
    if recipe.sampling.engine == "transformers" and launch.zero_stage == 3:
        return "transformers cannot sample from weights that ZeRO-3 has partitioned; launch with ZeRO-2 or none"
    return None


def expert_problem(recipe: Recipe, config: PretrainedConfig, launch: Launch) -> str | None:
    """Why an engine on a CPU cannot have an adapter beside its experts; None where it can, or has none."""
    on_cpu = not launch.hardware.is_gpu
    if recipe.sampling.sync == "adapter" and on_cpu and experts(skeleton(config, recipe.model.policy)):
        what = "vLLM's experts need Triton beside adapters, and on a CPU there is none"
        return f"adapter cannot be, for {what}; write sync: merged"
    return None


def quantize_problem(recipe: Recipe, config: PretrainedConfig, launch: Launch) -> str | None:
    """Why the policy cannot be quantised as the recipe says; None where it can."""
    if recipe.model.quantize is None:
        return None
    if problem := why_not():
        return problem
    if launch.zero_stage == 3:
        return "ZeRO-3 would partition the 4-bit weights without what makes them whole; launch with ZeRO-2 or none"
    if experts(skeleton(config, recipe.model.policy)):
        kind = config.get_text_config().model_type
        return f"the experts of {kind} are no linear layers, so nearly all of it would stay whole; leave it out"
    return None
