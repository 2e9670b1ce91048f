"""Estimate the memory that a run takes at its peak, term by term, without loading anything.

The layers' activations are counted, not modelled: the model runs once on fake tensors, which have shapes and no memory.
Responses are assumed to be as long as they may be. `python tests/bench/memory.py MACHINE RECIPE` measures the error. On
recipes/gfpo_chain_sum.yaml, two steps on a CPU in one process: -6 % with the adapter (estimated 4.78 GiB, measured
5.06), +11 % without it (estimated 6.44, measured 5.82). Nothing was measured on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from align.check.requirements import REFERENCE, head_specs, needs
from align.check.survey import Survey
from align.data.prompts import Pair
from align.learner.micro_batches import UNTRACKED
from align.learner.weights import base_size
from align.model import layouts
from align.model.policy import CHUNK
from align.rollout.engine_arguments import cache_bytes, token_bytes

GIB = 2**30

FLOAT = 4  # bytes

LOGIT_COPIES = 4  # of a chunk in float32: logits, their log-softmax, and the gradients of both

PROBE = 32  # tokens of the run on fake tensors: few, since a mask that it makes, and a run does not, is square

# GiB of a process on a CPU, measured there as the growth with each import, and with compiling
LIBRARIES = 0.6  # torch, transformers, DeepSpeed, before any model

VLLM_LIBRARIES = 0.2

COMPILED = 0.2  # what sampling.compile adds to an engine


def training_memory(found: Survey) -> dict[str, float]:
    """{term: GiB} of training in one process, `total` among them: of its GPU, or without one of the process."""
    terms = {
        **resident(found),
        "gradients": sizes(found)[1] * FLOAT / found.launch.shards["gradients"],
        "activations": activations(found),
        "logits": LOGIT_COPIES * CHUNK * found.config.get_text_config().vocab_size * FLOAT,
        "libraries": 0 if found.launch.hardware.is_gpu else LIBRARIES * GIB,
    }
    return _in_gib(terms)


def resident(found: Survey) -> dict[str, float]:
    """{term: bytes} that training in one process holds all the time."""
    shards, width = found.launch.shards, bytes_of(found)
    whole, trained = sizes(found)
    states = {"adamw": 2, "sgd": 0}[found.experiment.recipe.optim.optimizer] + keeps_master(found)
    return {
        "weights": whole * width / shards["weights"],
        "optimiser": trained * states * FLOAT / shards["optimiser"],
        "reference and guide": _own_models(found) * whole * width / shards["weights"],
    }


def engine_memory(found: Survey) -> dict[str, float]:
    """{term: GiB} of one process's sampler; `total` alone, 0, where none is loaded beside the trainer's weights."""
    recipe, on_cpu = found.experiment.recipe, not found.launch.hardware.is_gpu
    if found.context is None or recipe.sampling.engine == "transformers":
        return {"total": 0.0}
    sampling = recipe.sampling
    weights = base_size(found.skeleton) * bytes_of(found) / sampling.tensor_parallel
    sequence = found.context * token_bytes(found.config, bytes_of(found), sampling.tensor_parallel)
    if sampling.cache_gib is None:
        free = found.launch.hardware.gib * GIB - sum(resident(found).values()) - weights
        cache = cache_bytes(free, sequence, sampling)
    else:  # a CPU gives memory when it is written
        most = sampling.max_sequences * sequence if on_cpu else math.inf
        cache = min(sampling.cache_gib * GIB, most)
    terms = {
        "engine weights": weights,
        "key-value cache": cache,
        "engine libraries": VLLM_LIBRARIES * GIB * on_cpu,
        "compiled code": COMPILED * GIB * on_cpu * recipe.sampling.compile,
    }
    return _in_gib(terms)


def bytes_of(found: Survey) -> int:
    """Bytes of one weight or activation."""
    return 2 if found.experiment.recipe.model.dtype == "bfloat16" else FLOAT


def stored_bytes(found: Survey) -> float:
    """Bytes of the policy's weights with its adapter and heads, of linear layers as they are quantised."""
    whole, width, causal = sizes(found)[0], bytes_of(found), found.skeleton
    if found.experiment.recipe.model.quantize is None:
        return whole * width
    head = causal.get_output_embeddings()
    linear = (module.weight for module in causal.modules() if isinstance(module, nn.Linear) and module is not head)
    quantized = sum(weight.numel() for weight in linear if not weight.requires_grad)
    return (whole - quantized) * width + quantized * quantize.BYTES


def sizes(found: Survey) -> tuple[int, int]:
    """(number of parameters of the policy with its adapter and heads, number of those that are trained)."""
    with torch.device("meta"):
        heads = [head.build(found.config) for head in head_specs(found.experiment.objectives)]
    of_heads = [p for head in heads for p in head.parameters()]
    parameters = [*found.skeleton.parameters(), *of_heads]
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def keeps_master(found: Survey) -> bool:
    """Whether the optimiser has float32 weights of its own: DeepSpeed's under ZeRO, and in bfloat16."""
    return found.launch.zero_stage > 0 or found.experiment.recipe.model.dtype == "bfloat16"


def step_tokens(found: Survey) -> int:
    """Most tokens that one process computes with a gradient in a step; packed, a prompt counts once a group."""
    recipe, total = found.experiment.recipe, 0
    layout = layouts.layout_on(found.launch.hardware.kind, recipe.optim.layout)
    for name, source in recipe.sources().items():
        prompts = found.sources[name].train
        if source.prompts:
            longest = max(len(prompt.ids) for prompt in prompts)
            groups = [(longest, [recipe.sampling.max_response_tokens] * recipe.sampling.group_size)]
        else:
            pairs = [prompt for prompt in prompts if isinstance(prompt, Pair)]
            groups = [(len(pair.ids), [len(answer.ids) for answer in pair.answers]) for pair in pairs]
        total += source.prompts_per_step * max(_positions(layout, *group) for group in groups)
    return -(-total // found.launch.processes)


def activations(found: Survey) -> float:
    """Bytes that the layers keep of the largest micro-batch, or that one layer holds in a pass without a gradient."""
    recipe = found.experiment.recipe
    tracked = min(recipe.optim.micro_batch_tokens, step_tokens(found))
    free = min(recipe.optim.micro_batch_tokens * UNTRACKED, step_tokens(found))
    text, whole = found.config.get_text_config(), kept_per_token(found.skeleton)
    kept, layer = whole, whole / text.num_hidden_layers
    if recipe.optim.checkpoint_activations:  # what each layer gets, and all of the one that is computed again
        kept = text.num_hidden_layers * text.hidden_size * FLOAT + layer
    return max(tracked * kept, free * layer) * bytes_of(found) / FLOAT


def kept_per_token(model: nn.Module) -> float:
    """Bytes in float32 that a decoder keeps of each token for the backward pass; `model` is on the meta device."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder, kept = causal.get_decoder(), {}
    mixture = getattr(decoder.config, "_experts_implementation", None) == "grouped_mm" and experts(decoder)
    dtype = torch.bfloat16 if mixture else torch.float32  # fake grouped products are known in bfloat16 alone
    with FakeTensorMode():
        weights, buffers = decoder.named_parameters(), decoder.named_buffers()
        values = {name: torch.empty(p.shape, dtype=dtype, requires_grad=p.requires_grad) for name, p in weights}
        values |= {name: torch.empty(b.shape, dtype=b.dtype) for name, b in buffers}
        own = {value.untyped_storage()._cdata for value in values.values()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            """Count the memory of a tensor once, unless it is the model's own."""
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                floats = FLOAT / dtype.itemsize if tensor.dtype == dtype else 1
                kept[storage._cdata] = storage, floats  # held, so that no other storage gets its name
            return tensor

        inputs = {"input_ids": torch.zeros(1, PROBE, dtype=torch.int64), "position_ids": torch.arange(PROBE)[None]}
        inputs |= {"inputs_embeds": None, "use_cache": False}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            torch.func.functional_call(decoder, values, (), inputs)
        return sum(storage.nbytes() * floats for storage, floats in kept.values()) / PROBE


def _own_models(found: Survey) -> int:
    """Number of frozen models that are loaded beside the policy, each about as large as it."""
    recipe, needed = found.experiment.recipe, needs(found.experiment, found.banks)
    reference = bool(needed & REFERENCE) and recipe.model.adapter is None
    guide = "guide_logprob" in needed and not (recipe.model.adapter and found.guide_is_adapter)
    return reference + guide


def _positions(layout: str, prompt: int, responses: Sequence[int]) -> int:
    """Positions that the layers compute for one group."""
    rows = [layouts.Row(i, 0, prompt, length, length) for i, length in enumerate(responses)]
    return reduce(layout.add, rows, layouts.Load()).positions


def _in_gib(terms: dict[str, float]) -> dict[str, float]:
    """{term: GiB} of {term: bytes}, and their `total`."""
    rounded = {name: round(value / GIB, 3) for name, value in terms.items()}
    return rounded | {"total": round(sum(terms.values()) / GIB, 3)}
