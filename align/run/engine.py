"""Start the engine that samples, with a cache that fits beside the trainer."""

from __future__ import annotations

import torch

from align.check.requirements import CheckedRun
from align.config.experiment import Experiment
from align.config.recipe import Recipe
from align.config.recipe_file import ConfigError
from align.learner.learner import Learner
from align.learner.weights import base_size
from align.rollout import server_facts
from align.rollout.engine_arguments import cache_bytes, cache_problem, token_bytes
from align.rollout.generator import Generator
from align.rollout.served_engine import Served
from align.rollout.transformers_engine import Transformers
from align.rollout.vllm_engine import VLLM
from align.run.terminal import say, say_own
from align.system.hardware import GIB, free_bytes, here


def make_generator(checked: CheckedRun, learner: Learner) -> Generator:
    """This rank's engine, with the policy's base. Collective. Raises `ConfigError` where its cache does not fit beside
    the trainer, and `ServerError` where no server fits the recipe."""
    recipe = checked.experiment.recipe
    if recipe.sampling.engine == "transformers":
        pad_id = checked.tokenizer.pad_token_id or 0
        return Transformers(learner.model, checked.ends, pad_id, recipe.sampling, checked.tokenizer)
    if recipe.sampling.engine == "server":
        wanted = server_facts.wanted(recipe.sampling, recipe.model, learner.model.config, checked.context)
        place = learner.accelerator.process_index, learner.accelerator.num_processes
        return Served(recipe, learner.model, wanted, place, checked.experiment.file.name, say_own)
    given = recipe.sampling.cache_gib
    cache = cache_beside(learner, checked.experiment, checked.context) if given is None else int(given * GIB)
    engine = VLLM(checked.path, recipe, checked.context, here(), cache)
    if recipe.model.quantize:
        engine.take_base(learner.model)
    return engine


def shared_by(recipe: Recipe) -> int:
    """How many processes of the run share an engine in one of them; servers are nobody's."""
    return 1 if recipe.sampling.engine == "server" else recipe.sampling.tensor_parallel


def cache_beside(learner: Learner, experiment: Experiment, context: int) -> int:
    """Bytes of the engine's cache on a GPU that holds the trainer already; tells them. Raises `ConfigError`."""
    recipe, sampling = experiment.recipe, experiment.recipe.sampling
    width, left = getattr(torch, recipe.model.dtype).itemsize, free_bytes()
    sequence = context * token_bytes(learner.model.config, width, sampling.tensor_parallel)
    weights = base_size(learner.model) * width / sampling.tensor_parallel
    size = cache_bytes(left - weights, sequence, sampling)
    if problem := cache_problem(size, sequence):
        raise ConfigError([experiment.file.problem(("sampling", "cache_gib"), problem)])
    cache, free, taken = (f"{part / GIB:.3g}" for part in (size, left, weights))
    say(f"sampling.cache_gib: {cache}, of {free} GiB that the trainer leaves, {taken} of them for the engine's weights")
    return size
