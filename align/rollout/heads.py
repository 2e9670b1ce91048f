"""The head in vLLM below an adapter, which no adapter here has: layers outside the blocks are refused."""

from __future__ import annotations

from torch import Tensor, nn


class _Nothing:
    """In place of the kernels that add an adapter's part to the logits."""

    def add_lora_logits(self, logits: Tensor, *_: object) -> None:
        """Add nothing."""


def leave_head(model: nn.Module) -> None:
    """Have the engine compute the logits of a vLLM model without its adapter's kernels.

    Those for CPUs take one row for each request (`PunicaWrapperCPU.add_lora_logits` in vLLM 0.32), and raise for the
    logits of several prompts in one batch, each of which has as many rows as tokens.
    """
    from vllm.lora.layers import LogitsProcessorWithLoRA

    for module in model.modules():
        if isinstance(module, LogitsProcessorWithLoRA):
            module.punica_wrapper = _Nothing()
