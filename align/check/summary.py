"""Describe a run that passes its check: lengths and cuts, the arithmetic of a step, models, passes, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align.check import model_files, remedies
from align.check.memory import Setup, phases
from align.check.requirements import REFERENCE, needs
from align.check.rewards import GIVEN, Trial
from align.check.sizes import adapted, heads_of, setup_of, step_tokens
from align.check.survey import Survey
from align.config.data_keys import Data
from align.data.store import NONE, sizes
from align.learner.passes import PROVIDED_BY
from align.model.load import context_length
from align.system.hardware import gpus


def facts(found: Survey, trials: Mapping[str, Trial], depends: Setup | None) -> dict[str, Any]:
    """Facts of a survey without problems, as plain data; `notes` names those that deserve a look. `depends` is its
    `setup`."""
    experiment, recipe = found.experiment, found.experiment.recipe
    sources = recipe.sources()
    return {
        "launch": {"processes": found.launch.processes, "zero_stage": found.launch.zero_stage, "on": machine(found)},
        "model": model(found),
        "data": {name: lengths(source, sources[name]) for name, source in found.sources.items()},
        "context": {"needed": found.context, "of the model": context_length(found.config)},
        "step": step(found),
        "rewards": {name: trial.means for name, trial in trials.items()},
        "models": loaded(found),
        "passes": passes(found),
        "memory_gib": phases(depends) if depends else {},
        "steps": recipe.run.steps,
        "chosen": {f"{c.section}.{c.key}": {"value": c.value, "why": c.why} for c in found.chosen},
        "first": found.missing_stages,
        "objectives": [objective.name for objective in experiment.objectives],
    }


def machine(found: Survey) -> str:
    """What each process computes on."""
    launch = found.launch
    if not launch.hardware.is_gpu:
        return "a CPU"
    return f"a GPU of {launch.hardware.gib:.4g} GiB" + (f" ({launch.given})" if launch.given else "")


def setup(found: Survey) -> Setup | None:
    """What the estimate of memory depends on; None for a model whose layers do not run on fake tensors, such as some
    mixtures."""
    try:
        return setup_of(found)
    except (RuntimeError, AttributeError, TypeError):
        return None


def too_large(found: Survey, depends: Setup | None) -> list[str]:
    """Why the run cannot fit on its GPUs, with the keys that would make it fit; [] where it fits, or nobody knows."""
    why = depends and remedies.problem(depends, lambda: adapted(found))
    where = f"{found.launch.name}: {found.launch.processes} processes, ZeRO-{found.launch.zero_stage}"
    return [f"{where}: {why}"] if why else []


def model(found: Survey) -> dict[str, Any]:
    """The policy: its name, its size, its tokens."""
    tokenizer = found.tokenizer
    parameters = [p for module in (found.skeleton, *heads_of(found)) for p in module.parameters()]
    return {
        "policy": found.experiment.recipe.model.policy,
        "parameters": sum(p.numel() for p in parameters),
        "trained": sum(p.numel() for p in parameters if p.requires_grad),
        "end_tokens": tokenizer.convert_ids_to_tokens(found.ends),
        "pad_token": tokenizer.pad_token,
        "chat_template": template(found),
    }


def template(found: Survey) -> str:
    """Which chat template makes the prompts."""
    if named := found.experiment.recipe.model.chat_template or found.staged_template:
        return named
    return "none" if found.tokenizer.chat_template is None else "the tokenizer's own"


def lengths(source: Any, data: Data) -> dict[str, Any]:
    """Numbers of prompts, quantiles of their tokens, and how many recorded responses are cut."""
    both = [sizes(rows) for rows in (source.train, source.held_out)]
    answers = np.concatenate([found.answers.ravel() for found in both])
    answers = answers[answers != NONE]
    out = {
        "train": len(source.train),
        "held_out": len(source.held_out),
        "prompt_tokens": quantiles(np.concatenate([found.prompt for found in both])),
        "over max_prompt_tokens": source.dropped,  # else one would have been a problem
    }
    if len(answers):
        cut = sum(int(found.cut.sum()) for found in both)
        out |= {"response_tokens": quantiles(answers), "responses": len(answers), "cut": cut}
    return out


def quantiles(values: Sequence[int] | np.ndarray) -> dict[str, int]:
    """{name: value}, each one of the values."""
    levels = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: int(np.quantile(values, level, method="higher")) for name, level in levels.items()}


def step(found: Survey) -> dict[str, Any]:
    """Numbers of one step: prompts, rows, micro-batches of a process, updates."""
    recipe, processes = found.experiment.recipe, found.launch.processes
    rows = {name: source.prompts_per_step * per_prompt(found, name) for name, source in recipe.sources().items()}
    prompts = sum(source.prompts_per_step for source in recipe.sources().values())
    trained = sum(len(source.train) for source in found.sources.values())
    share = -(-step_tokens(found)[0] // processes)
    return {
        "prompts": prompts,
        "rows": sum(rows.values()),
        "rows of a process": -(-sum(rows.values()) // processes),
        "micro_batch_tokens": recipe.optim.micro_batch_tokens,
        "micro-batches of a process, about": -(-share // recipe.optim.micro_batch_tokens),
        "updates": recipe.optim.updates_per_step,
        "epochs": round(recipe.run.steps * prompts / trained, 2),
    }


def per_prompt(found: Survey, name: str) -> int:
    """Rows that a prompt of a source becomes."""
    if found.experiment.recipe.sources()[name].sampled:
        return found.experiment.recipe.sampling.group_size
    return int((sizes(found.sources[name].train).answers != NONE).sum(1).max())


def loaded(found: Survey) -> dict[str, str]:
    """{model: where its weights come from} of all that the objectives make a run load, the sampler among them."""
    recipe, needed = found.experiment.recipe, needs(found.experiment, found.banks)
    out, start = {"policy": recipe.model.policy}, recipe.model.adapter and recipe.model.adapter.start
    if start:
        out["adapter"] = f"goes on from {start}"
    if needed & REFERENCE:
        out["reference"] = "the policy's base, its adapter off" if recipe.model.adapter else "a copy of the policy"
        if start:
            out["reference"] = f"{start}, frozen, over the policy's base"
    if "guide_logprob" in needed:
        out["guide"] = recipe.model.guide
    if found.context is not None:
        shared, n = recipe.sampling.engine == "transformers", recipe.sampling.tensor_parallel
        where = "a process" if n == 1 else f"for {n} processes"
        out["sampler"] = "the policy's own weights" if shared else f"vLLM, one {where}, sync {recipe.sampling.sync}"
    return out


def passes(found: Survey) -> dict[str, dict[str, list[str]]]:
    """{objective: {model: quantities that it is run for}}, one pass each over the trained rows before the update."""
    out = {}
    recipe = found.experiment.recipe
    for objective in found.experiment.objectives:
        name = objective.data or next(iter(recipe.sources()))
        given = set(found.banks[name].quantities if name in found.banks else ())
        if recipe.sources()[name].sampled and recipe.sampling.old_logprob == "sampler":
            given.add("old_logprob")
        if recipe.optim.updates_per_step == 1 and not any(
            "old_logprob" in transform.needs for transform in objective.chain
        ):
            given.add("old_logprob")  # the update's own pass gives it
        asked: dict[str, list[str]] = {}
        for quantity in sorted(objective.reads & set(PROVIDED_BY) - given):
            asked.setdefault(PROVIDED_BY[quantity][0], []).append(quantity)
        if "ref_kl" in objective.needs:
            asked.setdefault("reference", []).append("ref_kl, with the update")
        out[objective.name] = asked
    return out


def notes(found: Survey) -> list[str]:
    """Settings that would run, and may not be what was meant."""
    out, recipe, processes = [*found.missing_stages, *found.notes], found.experiment.recipe, found.launch.processes
    out += _gpus_here(found)
    if found.missing_stages:
        out.append(f"until then tokens are counted with {found.path}, and banks are not looked at")
    for name, data in recipe.sources().items():
        train, everything = found.sources[name].train, found.rows[name]
        if data.prompts_per_step > len(train):
            what = f"a step takes {data.prompts_per_step} prompts of {len(train)}: some stand in it twice"
            out.append(f"{name}: {what}; lower prompts_per_step")
        if data.sampled and data.prompts_per_step % processes:
            what = f"{data.prompts_per_step} prompts a step over {processes} processes leave some waiting"
            out.append(f"{name}: {what}; take a multiple")
        if dropped := found.sources[name].dropped:
            count = dropped + len(everything)
            out.append(f"{name}: {dropped} of {count} prompts are longer than max_prompt_tokens and left out")
        lengths = everything.sizes()
        if cut := int(lengths.cut.sum()):
            count = int((lengths.answers != NONE).sum())
            out.append(f"{name}: {cut} of {count} responses are cut at max_response_tokens; raise it")
    out += _unused(found)
    if recipe.optim.schedule == "linear" and recipe.optim.schedule_steps < recipe.run.steps:
        what = f"lr is 0 from step {recipe.optim.schedule_steps} of {recipe.run.steps} on"
        out.append(f"optim.schedule_steps: {what}; raise it, or leave it out")
    if recipe.optim.warmup_steps >= recipe.optim.schedule_steps:
        out.append(f"optim.warmup_steps: {recipe.optim.warmup_steps} never reaches optim.lr; lower it")
    if recipe.run.eval_every and not any(source.held_out for source in found.sources.values()):
        out.append("run.eval_every: nothing is held out to evaluate on; give data.holdout or data.eval_prompts")
    return out + _end_notes(found)


def _gpus_here(found: Survey) -> list[str]:
    """Notes on a launch file for other GPUs than this machine has."""
    launch, have = found.launch, gpus()
    each = -(-launch.processes // launch.machines)
    if not launch.hardware.is_gpu or each <= have:
        return []
    if not have:
        return [f"{launch.name}: is for GPUs, and this machine has none: nothing here shows how they fare"]
    what = f"{each} processes a machine, and this one has {have} GPU{'s' if have > 1 else ''}"
    return [f"{launch.name}: num_processes: {what}; run there where it has as many, or lower it"]


def _unused(found: Survey) -> list[str]:
    """Notes on keys and columns that have no effect."""
    recipe, rewards, out = found.experiment.recipe, found.experiment.rewards, []
    for name, data in recipe.sources().items():
        rows = found.rows[name]
        if not any(form.conversational for form in rows.forms()):
            for key in ("system", "chat_template_kwargs"):
                if getattr(data, key):
                    out.append(f"{name}.{key}: has no effect, for no prompt is a list of messages; leave it out")
        if data.holdout_by and not data.holdout and not data.eval_prompts:
            out.append(f"{name}.holdout_by: has no effect without holdout or eval_prompts; leave it out")
        if data.eval_args and not data.eval_prompts:
            out.append(f"{name}.eval_args: has no effect without eval_prompts; leave it out")
        hidden = sorted(GIVEN & {column for form in rows.forms() for column in form.columns})
        if hidden and rewards:
            out.append(f"{name}: rewards get {hidden[0]} of the run, not the column of this name; rename it")
    if rewards and not any(reward.weight for reward in rewards):
        out.append("rewards: every weight is 0, so all responses are worth the same; give one a weight")
    return out


def _end_notes(found: Survey) -> list[str]:
    """Notes on end tokens with which responses may never stop."""
    tokenizer, names = found.tokenizer, found.tokenizer.convert_ids_to_tokens(found.ends)
    sources, out = found.experiment.recipe.sources(), []
    talking = [name for name, rows in found.rows.items() if any(form.conversational for form in rows.forms())]
    variables = [sources[name].chat_template_kwargs for name in talking]
    if not all(model_files.ends_answers(tokenizer, found.ends, given) for given in variables):
        what = f"its chat template ends no answer with {' or '.join(names)}: a response may never stop"
        out.append(f"{found.path}: {what}; set the end token to what the template writes")
    if tokenizer.eos_token_id not in found.ends:
        what = f"the tokenizer's end token is {tokenizer.eos_token}, and the model stops at {' or '.join(names)}"
        out.append(f"{found.path}: {what}; both should be in generation_config.json")
    return out
