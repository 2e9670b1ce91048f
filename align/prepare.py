"""From a recipe to everything that a step needs: data, models, engine, sampler; checked before it is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from align import bank, layouts, models, probe
from align.activations import recorded
from align.bank import Bank
from align.config import Experiment
from align.data import DataError, Prompts
from align.generator import VLLM, Generator, Transformers
from align.heads import Head
from align.launch import Launch
from align.learner import Learner
from align.loop import Loop, pairs_in
from align.models import ModelError, Speaker
from align.objectives import Objective
from align.policy import Policy
from align.proof import TOLERANCE, Proof, choose
from align.recipe import Recipe
from align.schema import ConfigError
from align.workers import Worker


def check_stages(experiment: Experiment) -> None:
    """Raises `ModelError` where a model or guide that the recipe names is not there."""
    for folder, recipe in experiment.made_by.items():
        if not Path(folder).exists():
            raise ModelError(f"{folder}: not there yet; first run {recipe}")
    if experiment.recipe.model.guide:  # looking at it finds out that it is missing before anything is loaded
        models.is_adapter(experiment.recipe.model.guide)


@dataclass(frozen=True)
class Ground:
    """What a run stands on: checked, with nothing of a model's weights loaded yet (`check.passed` gives it)."""

    experiment: Experiment  # settled
    path: str  # folder of the policy
    tokenizer: PreTrainedTokenizerBase
    sources: Mapping[str, Prompts]
    banks: Mapping[str, Bank]
    context: int | None  # most tokens of prompt and response together; None where nothing is sampled
    asked_layout: str | None  # as the recipe has it


def prepare(ground: Ground, accelerator: Accelerator) -> Loop:
    """Load: policy with its heads, reference and guide if something needs them, engine, sampler."""
    experiment, path, tokenizer, banks = ground.experiment, ground.path, ground.tokenizer, ground.banks
    recipe = experiment.recipe
    sampled = ground.context is not None
    judges = [Worker(reward, recipe.reward_limits) for reward in experiment.rewards if sampled]  # they load meanwhile
    model = models.load_model(path, recipe.model.dtype)
    torch.manual_seed(recipe.run.seed)  # the first weights of adapter and heads
    if recipe.model.adapter:
        model = models.add_adapter(model, recipe.model.adapter, recipe.model.policy)
    policy = Policy(model, recipe.sampling.temperature, head_specs(experiment.objectives))
    frozen = load_frozen(experiment, needs(experiment, banks), path, model, tokenizer)
    learner = Learner(accelerator, policy, layouts.LAYOUTS[recipe.optim.layout], recipe.optim, frozen)
    probe.check_head(learner)
    experiment = check_packing(experiment, ground.asked_layout, learner)
    generator = make_generator(path, recipe, learner, tokenizer, ground.context) if sampled else None
    proof = make_proof(experiment, ground.sources, learner) if sampled else None
    for judge in judges:
        judge.wait()
    return Loop(experiment, ground.sources, banks, tokenizer, generator, learner, proof, judges)


def check_pairs(experiment: Experiment, sources: Mapping[str, Prompts], limit: int | None) -> None:
    """Raises `DataError` where an objective compares responses and a row has nothing to compare with, or where a
    prompt with its response is longer than the model's context."""
    everything = {name: pairs_in([*source.train, *source.held_out]) for name, source in sources.items()}
    for pair in (pair for pairs in everything.values() for pair in pairs):
        length = len(pair.ids) + max(len(answer.ids) for answer in pair.answers)
        if limit is not None and length > limit:
            what = f"a pair takes {length} tokens and the model's context has {limit}"
            raise DataError(f"data: row {pair.row}: {what}; lower data.max_response_tokens: {pair.text[:60]!r}...")
    for objective in experiment.objectives:
        name = objective.data or next(iter(sources))
        for pair in everything[name] if objective.pairs else ():
            if pair.rejected is None:
                what = f"row {pair.row} has no 'rejected', which {objective.name} needs"
                raise DataError(f"data: {what}: {pair.text[:60]!r}...")


REFERENCE = {"ref_logprob", "ref_kl", "reward_mask", "kl_mask"}  # what only a reference can say


def needs(experiment: Experiment, banks: Mapping[str, Bank]) -> set[str]:
    """Quantities that some link or loss reads and no bank has."""
    out = set()
    for objective in experiment.objectives:
        name = objective.data or next(iter(experiment.recipe.sources()))
        out |= objective.needs - set(banks[name].quantities if name in banks else ())
    return out


def head_specs(objectives: Iterable[Objective]) -> list[Head]:
    """The modules that the losses train beside the policy, one of a name."""
    heads = [head for objective in objectives for loss in objective.losses for head in loss.heads]
    return list({head.name: head for head in heads}.values())


def head_gives(experiment: Experiment) -> set[str]:
    """What the policy's heads give."""
    return {name for head in head_specs(experiment.objectives) for name in head.gives}


def check_activations(model: torch.nn.Module) -> None:
    """Raises `ModelError` for a model whose activations are not found where MaPO looks for them."""
    try:
        with recorded(model):
            pass
    except ValueError as error:
        raise ModelError(f"model.policy: mapo: {error}") from error


def needs_sampler(experiment: Experiment, sources: Mapping[str, Prompts]) -> bool:
    """Whether anything is ever sampled: rollouts, or responses to held-out prompts that rewards judge."""
    held_out = any(source.held_out for source in sources.values())
    return any(d.prompts for d in experiment.recipe.sources().values()) or bool(experiment.rewards and held_out)


def load_frozen(
    experiment: Experiment,
    needed: set[str],
    path: str,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[Speaker, Policy]:
    """Reference and guide, if needed: of a policy with an adapter the reference is its base, and a guide that is an
    adapter sits beside it; else each is a model of its own."""
    recipe, out = experiment.recipe, {}

    def frozen(model: torch.nn.Module) -> Policy:
        return Policy(model.requires_grad_(False), recipe.sampling.temperature)

    if needed & REFERENCE and not recipe.model.adapter:
        out["reference"] = frozen(models.load_model(path, recipe.model.dtype))
    if "guide_logprob" in needed:
        guide = recipe.model.guide
        if recipe.model.adapter and models.is_adapter(guide):
            models.add_guide(model, guide, recipe.model.policy)
        else:
            out["guide"] = frozen(models.guide_model(guide, recipe.model, path, tokenizer))
    return out


def load_banks(
    experiment: Experiment, sources: Mapping[str, Prompts], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Bank]:
    """{source: its bank}, each checked against the source's pairs, the tokenizer and the models."""
    out = {}
    for name, source in experiment.recipe.sources().items():
        if source.bank:
            where = "data.bank" if len(sources) == 1 else f"data.{name}.bank"
            out[name] = bank.read(Path(source.bank), bank_identity(experiment, tokenizer), where)
            split = sources[name]
            out[name].check(pairs_in([*split.train, *split.held_out]), where)
    return out


def bank_identity(experiment: Experiment, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What the numbers of this recipe's bank depend on."""
    model = experiment.recipe.model
    speakers = {"policy's base": models.fingerprint(model.policy), "dtype": model.dtype}
    if model.guide:
        speakers["guide"] = models.fingerprint(model.guide)
    return bank.identity(tokenizer, speakers, experiment.recipe.sampling.temperature)


def settle(experiment: Experiment, model_config: PretrainedConfig, launch: Launch) -> Experiment:
    """Fill in the keys whose default depends on the model or the machine. Raises `ConfigError`."""
    recipe, source = experiment.recipe, experiment.source
    try:
        layout = layouts.choose(recipe.optim.layout, model_config)
    except ValueError as error:
        raise ConfigError([source.problem(("optim", "layout"), str(error))]) from error
    if recipe.sampling.engine == "transformers" and launch.zero_stage == 3:
        problem = "transformers cannot sample from weights that ZeRO-3 has partitioned; launch with ZeRO-2 or none"
        raise ConfigError([source.problem(("sampling", "engine"), problem)])
    sync = recipe.sampling.sync
    if recipe.sampling.engine == "vllm" and sync is None:
        sync = "adapter" if recipe.model.adapter and torch.cuda.is_available() else "merged"
    temperature = recipe.eval.temperature or recipe.sampling.temperature
    settled = {
        "optim": recipe.optim.model_copy(
            update={"layout": layout, "schedule_steps": recipe.optim.schedule_steps or recipe.run.steps}
        ),
        "sampling": recipe.sampling.model_copy(
            update={"sync": sync, "tolerance": recipe.sampling.tolerance or TOLERANCE[recipe.model.dtype]}
        ),
        "eval": recipe.eval.model_copy(update={"temperature": temperature}),
        "correct": experiment.correct,
    }
    return replace(experiment, recipe=recipe.model_copy(update=settled))


def check_packing(experiment: Experiment, asked: str | None, learner: Learner) -> Experiment:
    """Pads rows where the configuration allowed packing and the probe of a model did not. Raises `ConfigError` where
    the recipe asked for it."""
    if learner.layout is not layouts.shared_prefix:
        return experiment
    packed = [probe.packs(module) for module in (learner.engine, *learner.frozen.values())]
    if all(packed):
        return experiment
    if asked:
        problem = "packing changes what the policy, the reference or the guide says; write padded"
        raise ConfigError([experiment.source.problem(("optim", "layout"), problem)])
    learner.accelerator.print("rows of these models cannot be packed behind their prompts: padded, which is slower")
    learner.layout, recipe = layouts.padded, experiment.recipe
    optim = recipe.optim.model_copy(update={"layout": layouts.padded.name})
    return replace(experiment, recipe=recipe.model_copy(update={"optim": optim}))


def make_generator(path: str, recipe: Recipe, learner: Learner, tokenizer, context: int) -> Generator:
    if recipe.sampling.engine == "transformers":
        ends = learner.model.generation_config.eos_token_id or tokenizer.eos_token_id
        return Transformers(learner.model, ends if isinstance(ends, list) else [ends], tokenizer.pad_token_id or 0)
    return VLLM(path, recipe, context)


def make_proof(experiment: Experiment, sources: Mapping[str, Prompts], learner: Learner) -> Proof:
    """On the same tokens after a resume: they are chosen before anything was trained."""
    prompts = [prompt.ids for source in sources.values() for prompt in (*source.train, *source.held_out)]
    return Proof(choose(learner, max(prompts, key=len)), experiment.recipe.sampling)


def needed_context(sources: Mapping[str, Prompts], recipe: Recipe, limit: int | None) -> int:
    """Most tokens of prompt and response together. Raises `DataError` where the model has fewer."""
    prompts = [prompt for source in sources.values() for prompt in (*source.train, *source.held_out)]
    longest = max(prompts, key=lambda prompt: len(prompt.ids))
    context = len(longest.ids) + recipe.sampling.max_response_tokens
    if limit is not None and context > limit:
        raise DataError(
            f"data: the longest prompt ({len(longest.ids)} tokens) and sampling.max_response_tokens"
            f" ({recipe.sampling.max_response_tokens}) need {context} tokens, and the model's context has {limit};"
            f" the prompt: {longest.text[:80]!r}..."
        )
    return context


PATIENCE = timedelta(hours=6)  # of ranks for each other; what can hang has limits of its own


def make_accelerator(experiment: Experiment) -> Accelerator:
    """Raises `ConfigError` where the launch file does not start DeepSpeed."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"  # accelerate names none without an accelerator
    run = experiment.recipe.run  # None where it is wrong, which the check is about to say
    accelerator = Accelerator(
        log_with=list(run.trackers) or None if run else None,
        project_dir=run.out if run else None,
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=PATIENCE)],
    )
    if accelerator.state.deepspeed_plugin is None:
        raise ConfigError(
            ["no DeepSpeed: start with accelerate launch --config_file launch/cpu.yaml (or another there)"]
        )
    return accelerator


def set_threads() -> None:
    """accelerate exports OMP_NUM_THREADS=1; on a CPU this rank's share of the cores is what it should use."""
    if not torch.cuda.is_available():
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))
