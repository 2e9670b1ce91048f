"""`python -m align annotate`: compute the log-probabilities of a recipe's pairs under reference and guide, once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from align.batch import Batch
from align.check.defaults import fill_dtype
from align.check.requirements import bank_identity, check_stages
from align.config.experiment import Experiment
from align.config.recipe_file import ConfigError
from align.data import bank
from align.data.prompts import pairs_in
from align.data.read import load_prompts
from align.learner.micro_batches import UNTRACKED, divide
from align.learner.support import packs
from align.model import layouts
from align.model.adapter_files import guide_adapter, is_adapter, start_adapter
from align.model.adapters import guide_model
from align.model.chat_template import policy_tokenizer
from align.model.load import end_tokens, load_config, load_model
from align.model.locate import locate
from align.model.policy import Policy, read_tokens
from align.rollout import tensors
from align.run.processes import set_threads
from align.system.hardware import here


def annotate(experiment: Experiment) -> list[Path]:
    """Write the bank of every source that names one, and return their folders.

    Raises `ConfigError` where none does, `DataError` and `ModelError`.
    """
    experiment = fill_dtype(experiment, here())
    recipe = experiment.recipe
    sources = {name: source for name, source in recipe.sources().items() if source.bank}
    if not sources:
        raise ConfigError([experiment.file.problem(("data", "bank"), "missing; name a folder for the bank")])
    check_stages(experiment)
    set_threads()
    path = locate(recipe.model.policy)
    tokenizer = policy_tokenizer(path, recipe.model.chat_template)
    ends = end_tokens(path, tokenizer)
    layout = layouts.layout_on(here().kind, layouts.choose(recipe.optim.layout, load_config(path)))
    batches = {}
    for name, source in sources.items():
        pairs = load_prompts(source, tokenizer, recipe.run.seed, ends)
        batches[name] = tensors.pairs_to_batch(pairs_in([*pairs.train, *pairs.held_out]), tokenizer)
    scored = {name: {} for name in sources}
    for quantity, policy in _models(experiment, path, tokenizer):
        if layout is not layouts.padded and not packs(policy):
            layout = layouts.padded
        for name, batch in batches.items():
            [plan] = divide(
                *(batch, batch.present, batch.kept, batch.kept),
                ranks=1,
                tokens=recipe.optim.micro_batch_tokens * UNTRACKED,
                layout=layout,
                quadratic=policy.quadratic,
            )
            scored[name][quantity] = _score(batch, plan, layout, policy, quantity)
    identity = bank_identity(experiment, tokenizer)
    for name, batch in batches.items():
        bank.write(Path(sources[name].bank), batch, scored[name], identity)
    return [Path(source.bank) for source in sources.values()]


def _models(experiment: Experiment, path: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, Policy]]:
    """(quantity, the model that gives it): the reference, then the guide.

    A guide that is an adapter is put over the reference's own weights, so only one of them is usable at a time.
    """
    model, temperature = experiment.recipe.model, experiment.recipe.sampling.temperature
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = load_model(path, model.dtype, model.quantize).to(device)
    if start := model.adapter and model.adapter.start:
        reference = PeftModel.from_pretrained(base, start_adapter(start, model.policy), autocast_adapter_dtype=False)
        yield "ref_logprob", Policy(reference.eval(), temperature)
        base = reference.unload()
    else:
        yield "ref_logprob", Policy(base, temperature)
    if model.guide and is_adapter(model.guide):
        folder = guide_adapter(model.guide, model.policy)
        yield "guide_logprob", Policy(PeftModel.from_pretrained(base, folder).eval(), temperature)
    elif model.guide:
        yield "guide_logprob", Policy(guide_model(model.guide, model, path, tokenizer).to(device), temperature)


@torch.no_grad()
def _score(batch: Batch, plan: list[list[int]], layout: layouts.Layout, policy: Policy, what: str) -> torch.Tensor:
    """[B,T] nats of all rows, one micro-batch after another."""
    out = torch.zeros(batch.mask.shape)
    for rows in track(plan, description=what):
        part = batch.rows(torch.tensor(rows))
        out[rows] = read_tokens(policy, layout, part, part.present)
    return out
