"""Find out on a few tokens whether a model's head and attention are supported, before anything is sampled or trained.

Every function is collective.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from align.batch import Batch
from align.learner.learner import Learner
from align.model.layouts import layout_on, padded, why_not_packed
from align.model.locate import ModelError
from align.model.policy import Policy, read_tokens


@torch.no_grad()
def check_head(learner: Learner) -> None:
    """Raise `ModelError` for a model whose logits are not those that `Policy.logits` makes of its hidden states."""
    batch = Batch.of([0], [[1, 2, 3]], prompt_ids=[[1, 2]])
    gap = float(learner.engine(padded.inputs(batch, batch.mask), ("head_gap",))["head_gap"])
    if not gap < 1e-2 * max(1.0, 1 / learner.engine.module.temperature):
        kind = learner.model.config.get_text_config().model_type
        what = f"the head of {kind} makes logits in a way that is not known here (off by {gap:.3g})"
        raise ModelError(f"model.policy: {what}; it is not supported")


def check_attention() -> None:
    """Raise `ModelError` where DeepSpeed Ulysses has put itself in the place of attention in transformers: it splits
    sequences over processes and replaces every mask by the plain causal one."""
    for name, function in ALL_ATTENTION_FUNCTIONS.items():
        if getattr(function, "__module__", "").startswith("deepspeed."):
            what = f"DeepSpeed's sequence parallelism has replaced transformers' attention {name}; it drops masks"
            raise ModelError(f"model.policy: {what}; do not register it (register_with_transformers)")


@torch.no_grad()
def packs(module: nn.Module) -> bool:
    """Whether rows packed behind their shared prompts have the log-probabilities that they have padded side by side.

    Whatever mixes rows, such as a recurrent state or positions that are ignored, would change them by much.

    `module` is a `Policy`, or the engine around one.
    """
    policy: Policy = getattr(module, "module", module)
    text = policy.config.get_text_config()
    if why_not_packed(policy.config):
        return False
    tokens = (torch.arange(64) * 7919 % text.vocab_size).tolist()
    prompts = [tokens[:5], tokens[5:16]]
    answers = [tokens[16:24], tokens[24:29], tokens[29:41], tokens[41:48]]
    batch = Batch.of([0, 0, 1, 1], answers, prompt_ids=[prompts[0], prompts[0], prompts[1], prompts[1]])
    try:
        pair = (padded, layout_on(policy.model.device.type, "shared_prefix"))
        one, two = (read_tokens(module, layout, batch, batch.mask)[batch.mask] for layout in pair)
    except NotImplementedError:
        return False
    rounding = 0.02 if policy.model.dtype == torch.bfloat16 else 1e-4
    return float((one - two).abs().mean()) < rounding * float(one.abs().mean())
