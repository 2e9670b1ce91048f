"""`python -m align annotate`: score a recipe's pairs with its reference and guide once, and store a bank."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel
from rich.progress import track
from transformers import PreTrainedTokenizerBase

from align import bank, data, layouts, models, probe, rollouts
from align.batch import Batch
from align.config import Experiment
from align.loop import pairs_in
from align.plan import UNTRACKED, divide
from align.policy import Policy
from align.prepare import bank_identity, check_stages, set_threads
from align.schema import ConfigError


def annotate(experiment: Experiment) -> list[Path]:
    """Write the bank of every source that names one; their folders. Raises `ConfigError` where none does."""
    recipe = experiment.recipe
    sources = {name: source for name, source in recipe.sources().items() if source.bank}
    if not sources:
        raise ConfigError([experiment.source.problem(("data", "bank"), "missing; name a folder for the bank")])
    check_stages(experiment)
    set_threads()
    path = models.locate(recipe.model.policy)
    tokenizer = models.load_tokenizer(path)
    ends = models.end_tokens(path, tokenizer)
    layout = layouts.LAYOUTS[layouts.choose(recipe.optim.layout, models.load_config(path))]
    batches = {}
    for name, source in sources.items():
        pairs = data.load(source, tokenizer, recipe.run.seed, ends)
        batches[name] = rollouts.pairs_to_batch(pairs_in([*pairs.train, *pairs.held_out]), tokenizer)
    scored = {name: {} for name in sources}
    for quantity, policy in _speakers(experiment, path, tokenizer):
        if layout is layouts.shared_prefix and not probe.packs(policy):
            layout = layouts.padded
        for name, batch in batches.items():
            [plan] = divide(
                *(batch, batch.mask, batch.kept, batch.kept),
                ranks=1,
                tokens=recipe.optim.micro_batch_tokens * UNTRACKED,
                layout=layout,
                quadratic=policy.quadratic,
            )
            scored[name][quantity] = _score(batch, plan, layout, policy, quantity)
    made_by = bank_identity(experiment, tokenizer)
    for name, batch in batches.items():
        bank.write(Path(sources[name].bank), batch, scored[name], made_by)
    return [Path(source.bank) for source in sources.values()]


def _speakers(experiment: Experiment, path: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, Policy]]:
    """(quantity, who says it): reference and guide, one after the other; a guide that is an adapter is put over the
    reference's own weights."""
    model, temperature = experiment.recipe.model, experiment.recipe.sampling.temperature
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = models.load_model(path, model.dtype).to(device)
    yield "ref_logprob", Policy(base, temperature)
    if model.guide and models.is_adapter(model.guide):
        folder = models.guide_adapter(model.guide, model.policy)
        yield "guide_logprob", Policy(PeftModel.from_pretrained(base, folder).eval(), temperature)
    elif model.guide:
        yield "guide_logprob", Policy(models.guide_model(model.guide, model, path, tokenizer).to(device), temperature)


@torch.no_grad()
def _score(batch: Batch, plan: list[list[int]], layout: layouts.Layout, policy: Policy, what: str) -> torch.Tensor:
    """[B,T] nats of all rows, one micro-batch after another."""
    out = torch.zeros(batch.mask.shape)
    for rows in track(plan, description=what):
        part = batch.rows(torch.tensor(rows))
        inputs = layout.inputs(part, part.mask)
        out[rows] = inputs.scatter(policy(inputs)["logprob"], part.mask.shape)
    return out
