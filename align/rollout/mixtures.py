"""Mixtures of experts in vLLM on a CPU, whose kernels have a layout of their own."""

from __future__ import annotations

from torch import nn


def pack_experts(model: nn.Module) -> None:
    """Bring the experts' weights of a vLLM model into its kernels' layout, after they were loaded again.

    vLLM 0.32 does that at the first load alone (`UnquantizedFusedMoEMethod._setup_kernel`), and from the second one on
    would read weights that are not packed as if they were.
    """
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

    for module in model.modules():
        if isinstance(module, RoutedExperts):
            module.quant_method.moe_kernel.fused_experts.process_weights_after_loading(module)
