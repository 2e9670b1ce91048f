"""Results as runs leave them, and ways to spoil them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file

from align.batch import Batch
from align.config.model_keys import Adapter
from align.learner import weights
from align.model.adapters import add_adapter
from align.model.layouts import padded
from align.model.load import load_model, load_tokenizer
from align.model.locate import loading_name, locate
from align.model.policy import Policy
from align.result import record
from align.result.record import ReferenceSequence

WEIGHTS = "adapter_model.safetensors"


def recorded(base: str, out: Path, kind: Literal["adapter", "model"], temperature: float = 0.8, quantize=None) -> Path:
    """What a run leaves: weights that differ from the base's, and the record of the policy that has them."""
    path = locate(base)
    model = load_model(path, "float32", quantize)
    if kind == "adapter":
        model = add_adapter(model, Adapter(rank=2), loading_name(base))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    policy = Policy(model, temperature)
    probes = [said(policy, ids) for ids in record.tokens(load_tokenizer(path))]
    weights.save(model, out, write=True)
    record.save(out, policy, base, probes, {"align": "0"})
    return out


@torch.no_grad()
def said(policy: Policy, ids: list[int]) -> ReferenceSequence:
    """A probe as the trainer computes it."""
    batch = Batch.of([0], [ids[1:]], prompt_ids=[ids[:1]])
    inputs = padded.inputs(batch, batch.mask)
    return ReferenceSequence(ids=ids, logprob=inputs.scatter(policy(inputs)["logprob"], batch.mask.shape)[0].tolist())


def rewrite(folder: Path, change: Callable[[dict], object]) -> None:
    """Change the tensors of an adapter's file."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def retell(folder: Path, change: Callable[[dict], object]) -> None:
    """Change the record of a result."""
    content = json.loads((folder / record.NAME).read_text())
    change(content)
    (folder / record.NAME).write_text(json.dumps(content))


def zero_b(tensors: dict) -> None:
    for name in tensors:
        tensors[name] *= "lora_A" in name
