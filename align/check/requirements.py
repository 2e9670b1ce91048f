"""Conditions that a recipe, its model and its data must fulfil together before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from align.config.experiment import Experiment
from align.config.recipe import Recipe
from align.data import bank
from align.data.bank import Bank
from align.data.prompts import DataError, Pair, Prompt, Prompts
from align.data.store import NONE, longest, sizes
from align.losses.head import Head
from align.model.activations import recorded
from align.model.adapter_files import is_adapter
from align.model.locate import ModelError, fingerprint
from align.objectives.objective import Objective

REFERENCE = {"ref_logprob", "ref_kl", "reward_mask", "kl_mask"}  # quantities that only the reference gives


@dataclass(frozen=True)
class CheckedRun:
    """A run that passed its check, with no weights loaded yet; `check.check_run` gives it."""

    experiment: Experiment  # with its defaults filled in
    path: str  # folder of the policy
    tokenizer: PreTrainedTokenizerBase
    sources: Mapping[str, Prompts]  # {source: its prompts}
    banks: Mapping[str, Bank]  # {source: its bank}, of those that name one
    ends: Sequence[int]  # ids of the tokens that end a response
    context: int | None  # most tokens of prompt and response together; None where nothing is sampled
    asked_layout: str | None  # optim.layout as the recipe has it; None: the best one


def check_stages(experiment: Experiment) -> None:
    """Raise `ModelError` where a model or guide that the recipe names is not there."""
    for folder, recipe in experiment.stage_recipes.items():
        if not Path(folder).exists():
            raise ModelError(f"{folder}: not there yet; first run {recipe}")
    if experiment.recipe.model.guide:  # raises where it is missing
        is_adapter(experiment.recipe.model.guide)


def check_pairs(experiment: Experiment, sources: Mapping[str, Prompts], limit: int | None) -> None:
    """Raise `DataError` for a pair without a rejected response where an objective needs it, and for one that is longer
    than the model's context; `limit` is the context in tokens."""
    for rows in (rows for source in sources.values() for rows in (source.train, source.held_out)):
        found = sizes(rows)
        lengths = np.where(found.answers[:, 0] == NONE, 0, found.prompt + found.answers.max(1))
        if limit is not None and (lengths > limit).any():
            place = int((lengths > limit).argmax())
            pair, what = rows[place], f"a pair takes {lengths[place]} tokens and the model's context has {limit}"
            raise DataError(f"data: row {pair.row}: {what}; lower data.max_response_tokens: {pair.text[:60]!r}...")
    for objective in experiment.objectives:
        source = sources[objective.data or next(iter(sources))]
        for rows in (source.train, source.held_out) if objective.pairs else ():
            chosen, rejected = sizes(rows).answers.T
            alone = (chosen != NONE) & (rejected == NONE)
            if alone.any():
                pair = rows[int(alone.argmax())]
                what = f"row {pair.row} has no 'rejected', which {objective.name} needs"
                raise DataError(f"data: {what}: {pair.text[:60]!r}...")


def check_activations(model: torch.nn.Module) -> None:
    """Raise `ModelError` for a model whose activations are not found where MaPO looks for them."""
    try:
        with recorded(model):
            pass
    except ValueError as error:
        raise ModelError(f"model.policy: mapo: {error}") from error


def needs(experiment: Experiment, banks: Mapping[str, Bank]) -> set[str]:
    """Quantities that some transform or loss reads and no bank has."""
    out = set()
    for objective in experiment.objectives:
        name = objective.data or next(iter(experiment.recipe.sources()))
        out |= objective.needs - set(banks[name].quantities if name in banks else ())
    return out


def needs_sampler(experiment: Experiment, sources: Mapping[str, Prompts]) -> bool:
    """Whether anything is ever sampled: rollouts, or responses to held-out prompts that rewards score."""
    held_out = any(source.held_out for source in sources.values())
    return any(d.sampled for d in experiment.recipe.sources().values()) or bool(experiment.rewards and held_out)


def needed_context(sources: Mapping[str, Prompts], recipe: Recipe, limit: int | None) -> int:
    """Most tokens of prompt and response together. Raises `DataError` where the model's context `limit` is shorter."""
    most = {name: prompt_tokens(recipe, name, source.train, source.held_out) for name, source in sources.items()}
    name = max(most, key=most.get)
    context = most[name] + recipe.sampling.max_response_tokens
    if limit is not None and context > limit:
        both = sources[name].train, sources[name].held_out
        first = max((longest(rows) for rows in both if rows), key=lambda prompt: len(prompt.ids))
        filled = most[name] > len(first.ids)
        which = "data.max_prompt_tokens, which the environment may fill up to," if filled else "the longest prompt"
        raise DataError(
            f"data: {which} ({most[name]} tokens) and sampling.max_response_tokens"
            f" ({recipe.sampling.max_response_tokens}) need {context} tokens, and the model's context has {limit};"
            f" the prompt: {first.text[:80]!r}..."
        )
    return context


def prompt_tokens(recipe: Recipe, name: str, *parts: Sequence[Prompt]) -> int:
    """Most tokens of a source's prompts; an environment may add to them, up to what the source allows."""
    most = max(int(sizes(prompts).prompt.max()) for prompts in parts if prompts)
    source = recipe.sources()[name]
    plays = recipe.environment and (source.sampled or source.eval_prompts)
    return max(most, source.max_prompt_tokens) if plays else most


def head_specs(objectives: Iterable[Objective]) -> list[Head]:
    """The heads that the losses train beside the policy, each once."""
    heads = [head for objective in objectives for loss in objective.losses for head in loss.heads]
    return list({head.name: head for head in heads}.values())


def head_gives(experiment: Experiment) -> set[str]:
    """Quantities that the policy's heads give."""
    return {name for head in head_specs(experiment.objectives) for name in head.gives}


def load_banks(
    experiment: Experiment, sources: Mapping[str, Prompts], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Bank]:
    """Load {source: its bank}. Raises `DataError` where one does not fit the pairs, the tokenizer or the models."""
    out = {}
    for name, source in experiment.recipe.sources().items():
        if source.bank:
            where = "data.bank" if len(sources) == 1 else f"data.{name}.bank"
            out[name] = bank.read(Path(source.bank), bank_identity(experiment, tokenizer), where)
            pairs = (row for rows in (sources[name].train, sources[name].held_out) for row in rows)
            out[name].check((row for row in pairs if isinstance(row, Pair)), where)
    return out


def bank_identity(experiment: Experiment, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Everything but the data that the numbers of this recipe's banks depend on; see `bank.identity`."""
    model = experiment.recipe.model
    models = {"policy's base": fingerprint(model.policy), "dtype": model.dtype}
    if model.quantize:
        models["quantize"] = model.quantize
    if model.adapter and model.adapter.start:  # the reference
        models["policy's base"] += f", adapter {fingerprint(model.adapter.start)}"
    if model.guide:
        models["guide"] = fingerprint(model.guide)
    return bank.identity(tokenizer, models, experiment.recipe.sampling.temperature)
