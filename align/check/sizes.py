"""Read what the estimate of memory depends on off a survey.

The layers' activations are counted, not modelled: the model runs once on fake tensors, which have shapes and no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig

from align.check import model_files
from align.check.memory import FLOAT, Sampler, Setup, Sizes
from align.check.requirements import REFERENCE, head_specs, needs, prompt_tokens
from align.check.survey import Survey
from align.config.launch import engine_stage
from align.config.model_keys import Adapter
from align.data.store import NONE, sizes
from align.model import layouts
from align.model.adapters import add_adapter, experts
from align.rollout.engine_arguments import kv_heads, token_bytes

PROBE = 32  # tokens of the run on fake tensors: few, since a mask that it makes, and a run does not, is square


def setup_of(found: Survey) -> Setup:
    """What the memory of one process of the run depends on. Raises `RuntimeError`, `AttributeError` or `TypeError` for
    a model whose layers do not run on fake tensors, such as some mixtures."""
    recipe, launch = found.experiment.recipe, found.launch
    width = 2 if recipe.model.dtype == "bfloat16" else FLOAT
    total, longest = step_tokens(found)
    policy = sizes_of(found.skeleton, heads_of(found), found.config, width)
    return Setup(
        policy=policy,
        gpu_gib=launch.hardware.gib if launch.hardware.is_gpu else None,
        processes=launch.processes,
        zero_stage=engine_stage(launch.zero_stage, recipe.model.dtype),
        width=width,
        moments={"adamw": 2, "sgd": 0}[recipe.optim.optimizer],
        frozen=sum(_own_models(found)),
        reference=_own_models(found)[0],
        tokens=total,
        row=longest,
        micro_batch=recipe.optim.micro_batch_tokens,
        sampler=_sampler(found),
        checkpointed=bool(recipe.optim.checkpoint_activations),
        quantised=recipe.model.quantize is not None,
        offload=recipe.optim.offload_optimizer,
    )


def adapted(found: Survey) -> Sizes:
    """The policy's sizes with an adapter over it, where the recipe trains all weights."""
    name = found.experiment.recipe.model.policy
    model = add_adapter(model_files.skeleton(found.config, name), Adapter(), name)
    width = 2 if found.experiment.recipe.model.dtype == "bfloat16" else FLOAT
    return sizes_of(model, heads_of(found), found.config, width)


def heads_of(found: Survey) -> list[nn.Module]:
    """The heads that the losses train, on the meta device."""
    with torch.device("meta"):
        return [head.build(found.config) for head in head_specs(found.experiment.objectives)]


def sizes_of(model: nn.Module, heads: Sequence[nn.Module], config: PretrainedConfig, width: int) -> Sizes:
    """A policy on the meta device, with its adapter and heads, in numbers; `width` are the bytes of a weight."""
    text = config.get_text_config()
    base = {name: p for name, p in model.named_parameters() if "lora_" not in name}
    everything = [*model.parameters(), *(p for head in heads for p in head.parameters())]
    trained = [p.numel() for p in everything if p.requires_grad]
    output = model.get_output_embeddings()
    linear = [m for m in model.modules() if type(m) is nn.Linear and m is not output]  # PEFT's have LoRA in their names
    matrices = {id(p) for m in linear for p in m.parameters()} & {id(p) for p in base.values()}
    return Sizes(
        base=sum(p.numel() for p in base.values()),
        added=sum(p.numel() for p in everything) - sum(p.numel() for p in base.values()),
        trained=sum(trained),
        linear=sum(p.numel() for p in base.values() if id(p) in matrices),
        largest=max(p.numel() for p in base.values()),
        largest_trained=max(trained),
        head=output.weight.numel(),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocabulary=text.vocab_size,
        heads=kv_heads(text),
        kept=kept_per_token(model, torch.bfloat16 if width == 2 else torch.float32),
        cached=token_bytes(config, width, 1),
    )


def step_tokens(found: Survey) -> tuple[int, int]:
    """(most tokens that all processes compute with a gradient in a step, those of the longest row); packed, a prompt
    counts once a group."""
    recipe, total, longest = found.experiment.recipe, 0, 0
    layout = layouts.layout_on(found.launch.hardware.kind, recipe.optim.layout)
    for name, source in recipe.sources().items():
        prompts = found.sources[name].train
        if source.sampled:
            prompt = prompt_tokens(recipe, name, prompts)
            groups = [(prompt, [recipe.sampling.max_response_tokens] * recipe.sampling.group_size)]
        else:
            of_rows = sizes(prompts)
            each = np.unique(np.column_stack([of_rows.prompt, of_rows.answers]), axis=0).tolist()
            groups = [(prompt, [n for n in answers if n != NONE]) for prompt, *answers in each]
        total += source.prompts_per_step * max(_positions(layout, *group) for group in groups)
        longest = max(longest, *(_positions(layout, ids, [max(answers)]) for ids, answers in groups))
    return total, longest


def kept_per_token(model: nn.Module, dtype: torch.dtype = torch.float32) -> float:
    """Bytes that a decoder of this type keeps of each token for the backward pass; `model` is on the meta device."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder, kept = causal.get_decoder(), {}
    mixture = getattr(decoder.config, "_experts_implementation", None) == "grouped_mm" and experts(decoder)
    fake = torch.bfloat16 if mixture else dtype  # fake grouped products are known in bfloat16 alone
    with FakeTensorMode():
        parameters, buffers = decoder.named_parameters(), decoder.named_buffers()
        values = {name: torch.empty(p.shape, dtype=fake, requires_grad=p.requires_grad) for name, p in parameters}
        values |= {name: torch.empty(b.shape, dtype=b.dtype) for name, b in buffers}
        own = {value.untyped_storage()._cdata for value in values.values()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            """Count the memory of a tensor once, unless it is the model's own."""
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                larger = dtype.itemsize / fake.itemsize if tensor.dtype == fake else 1
                kept[storage._cdata] = storage, larger  # held, so that no other gets its name
            return tensor

        inputs = {"input_ids": torch.zeros(1, PROBE, dtype=torch.int64), "position_ids": torch.arange(PROBE)[None]}
        inputs |= {"inputs_embeds": None, "use_cache": False}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            torch.func.functional_call(decoder, values, (), inputs)
        return sum(storage.nbytes() * larger for storage, larger in kept.values()) / PROBE


def _sampler(found: Survey) -> Sampler | None:
    """The engine; None where none is loaded beside the trainer's weights."""
    sampling = found.experiment.recipe.sampling
    if found.context is None or sampling.engine == "transformers":
        return None
    return Sampler(
        sequences=sampling.max_sequences,
        context=found.context,
        merged=sampling.sync == "merged",
        cache=sampling.cache_gib,
        compiled=sampling.compile,
        tensor_parallel=sampling.tensor_parallel,
        sleeps=bool(sampling.sleep),
    )


def _own_models(found: Survey) -> tuple[int, int]:
    """(references, guides): frozen models that are loaded beside the policy, each about as large as it."""
    recipe, needed = found.experiment.recipe, needs(found.experiment, found.banks)
    reference = bool(needed & REFERENCE) and recipe.model.adapter is None
    guide = "guide_logprob" in needed and not (recipe.model.adapter and found.guide_is_adapter)
    return int(reference), int(guide)


def _positions(layout: layouts.Layout, prompt: int, responses: Sequence[int]) -> int:
    """Positions that the layers compute for one group."""
    rows = [layouts.Row(i, 0, prompt, length) for i, length in enumerate(responses)]
    return reduce(layout.add, rows, layouts.Load()).positions
