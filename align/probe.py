"""What a few tokens tell about a model, before anything is sampled or trained: whether its head and its attention are
as this library takes them to be. Every function is collective."""

from __future__ import annotations

import torch

from align.batch import Batch
from align.layouts import padded, shared_prefix
from align.learner import Learner
from align.models import ModelError


@torch.no_grad()
def check_head(learner: Learner) -> None:
    """Raises `ModelError` for a model that makes logits of its hidden states in a way that is not known here."""
    batch = Batch.of([0], [[1, 2, 3]], prompt_ids=[[1, 2]])
    gap = float(learner.engine(padded.inputs(batch, batch.mask), ("head_gap",))["head_gap"])
    if not gap < 1e-2 * max(1.0, 1 / learner.engine.module.temperature):
        kind = learner.model.config.get_text_config().model_type
        what = f"the head of {kind} makes logits in a way that is not known here (off by {gap:.3g})"
        raise ModelError(f"model.policy: {what}; it is not supported")


@torch.no_grad()
def packs(learner: Learner) -> bool:
    """Whether packing a few rows behind their shared prompts leaves their log-probabilities as they are padded side
    by side: whatever mixes rows (a recurrent state, positions that are not asked for) would change them by much."""
    vocabulary = learner.model.config.get_text_config().vocab_size
    tokens = (torch.arange(64) * 7919 % vocabulary).tolist()
    prompts = [tokens[:5], tokens[5:16]]
    answers = [tokens[16:24], tokens[24:29], tokens[29:41], tokens[41:48]]
    batch = Batch.of([0, 0, 1, 1], answers, prompt_ids=[prompts[0], prompts[0], prompts[1], prompts[1]])
    try:
        one, two = (_logprob(learner, batch, layout) for layout in (padded, shared_prefix))
    except NotImplementedError:
        return False
    rounding = 0.2 if learner.model.dtype == torch.bfloat16 else 1e-3
    return float((one - two).abs().max()) < rounding * max(1.0, 1 / learner.engine.module.temperature)


def _logprob(learner: Learner, batch: Batch, layout) -> torch.Tensor:
    inputs = layout.inputs(batch, batch.mask)
    return inputs.scatter(learner.engine(inputs)["logprob"], batch.mask.shape)
