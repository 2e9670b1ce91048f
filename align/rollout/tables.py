"""Read the rows of a vLLM model's embedding and head, along the directions that the trainer reads its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from align.ops import directions


@torch.inference_mode()
def read(model: nn.Module) -> dict[str, Tensor]:
    """{`embedding`, `head`: [V,8] float32 on the CPU}, whole on each process of an engine; the head's by a product, for
    it may have a copy. Collective within an engine."""
    from vllm.distributed import tensor_model_parallel_all_gather
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    tables = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    embedding = next(table for table in tables if not isinstance(table, ParallelLMHead))
    head = next((table for table in tables if isinstance(table, ParallelLMHead)), embedding)
    along = [directions(table.weight.shape[1]).to(table.weight) for table in (embedding, head)]
    rows = embedding.weight @ along[0], head.quant_method.apply(head, along[1].T.contiguous()).T
    whole = [tensor_model_parallel_all_gather(part.contiguous(), dim=0) for part in rows]
    return {name: found.float().cpu() for name, found in zip(("embedding", "head"), whole, strict=True)}
