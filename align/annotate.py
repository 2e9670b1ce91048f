"""`python -m align annotate`: score a recipe's pairs with its reference and guide once, and store a bank."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.progress import track

from align import bank, data, layouts, models, rollouts
from align.batch import Batch
from align.config import Experiment
from align.plan import divide
from align.policy import Policy
from align.prepare import bank_identity, set_threads
from align.schema import ConfigError


def annotate(experiment: Experiment) -> list[Path]:
    """Write the bank of every source that names one; their folders. Raises `ConfigError` where none does."""
    recipe = experiment.recipe
    sources = {name: source for name, source in recipe.sources().items() if source.bank}
    if not sources:
        raise ConfigError([experiment.source.problem(("data", "bank"), "missing; name a folder for the bank")])
    set_threads()
    path = models.locate(recipe.model.policy)
    tokenizer = models.load_tokenizer(path)
    layout = layouts.LAYOUTS[layouts.choose(recipe.optim.layout, models.load_config(path))]
    base = models.load_model(path, recipe.model.dtype)
    speakers = {"ref_logprob": base}
    if recipe.model.guide:
        speakers["guide_logprob"] = models.guide_model(recipe.model.guide, recipe.model, path, tokenizer)
    batches = {}
    for name, source in sources.items():
        pairs = data.load(source, tokenizer, recipe.run.seed)
        held_out = [pair for pair in pairs.held_out if isinstance(pair, data.Pair)]
        batches[name] = rollouts.pairs_to_batch([*pairs.train, *held_out], tokenizer)
    made_by = bank_identity(experiment, tokenizer)
    for name, batch in batches.items():
        plan = divide(batch, batch.kept, 1, recipe.optim.micro_batch_tokens, layout.positions, batch.kept)[0]
        scored = {
            quantity: _score(batch, plan, layout, Policy(model, recipe.sampling.temperature), quantity)
            for quantity, model in speakers.items()
        }
        bank.write(Path(sources[name].bank), batch, scored, made_by)
    return [Path(source.bank) for source in sources.values()]


@torch.no_grad()
def _score(batch: Batch, plan: list[list[int]], layout: layouts.Layout, policy: Policy, what: str) -> torch.Tensor:
    """[B,T] nats of all rows, one micro-batch after another."""
    out = torch.zeros(batch.mask.shape)
    for rows in track(plan, description=what):
        part = batch.rows(torch.tensor(rows))
        inputs = layout.inputs(part, part.mask)
        out[rows] = inputs.scatter(policy(inputs)["logprob"], part.mask.shape)
    return out
