"""The gradient of two rows in bfloat16, alone and in 64 micro-batches a rank: MODEL_FOLDER lora|full OUT.

A step of SGD with such a learning rate moves no weight, so both gradients are of the same policy.
"""

import json
import sys

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from safetensors.torch import save_file
from support import ragged_batches
from support.deepspeed_setup import accelerator_for

from align.check.requirements import head_specs
from align.config.model_keys import Adapter
from align.config.optim_keys import Optim
from align.credit import assign
from align.learner.learner import Learner
from align.learner.passes import ForwardPasses
from align.model import layouts
from align.model.adapters import add_adapter
from align.model.load import load_model
from align.model.policy import Policy
from align.objectives import grpo, ppo
from align.system.clock import Clock

folder, kind, out = sys.argv[1:]
optim = Optim(lr=1e-30, optimizer="sgd", max_grad_norm=float("inf"), schedule_steps=1, micro_batch_tokens=1)
accelerator = accelerator_for(optim, "bfloat16")
model = load_model(folder, "bfloat16")
torch.manual_seed(0)
if kind == "lora":
    model = add_adapter(model, Adapter(rank=4, alpha=8), folder)
heads = head_specs([ppo(value_hidden="shared")]) if kind == "full" else ()
learner = Learner(accelerator, Policy(model, 0.7, heads), layouts.padded, optim)
trained = {name: p for name, p in learner.model.named_parameters() if p.requires_grad}
step, found = learner.engine.step, {}


def remember(*arguments, **given):
    """Keep the gradients that the step takes."""
    found.update({f"{groups}/{name}": safe_get_full_grad(p).clone() for name, p in trained.items()})
    return step(*arguments, **given)


learner.engine.step = remember
counts = []
for groups in ("one", "many"):
    batch = ragged_batches.twins(1 if groups == "one" else 32 * accelerator.num_processes)
    credited = assign(grpo(), batch, ForwardPasses(learner, "sampler", Clock()).for_batch())
    counts.append(len(learner.plan([[credited]]).micros))
    learner.update(learner.plan([[credited]]), 0)
masters = {name: safe_get_full_fp32_param(p) for name, p in trained.items()}
told = {
    "micro-batches": counts,
    "weights": sorted({str(getattr(p, "ds_tensor", p).dtype) for p in learner.engine.module.parameters()}),
    "masters": sorted({str(p.dtype) for p in masters.values()}),
    "gradients": sorted({str(p.dtype) for p in found.values()}),
}
if accelerator.is_main_process:
    save_file(found, out, metadata={"told": json.dumps(told)})
accelerator.wait_for_everyone()
accelerator.end_training()
