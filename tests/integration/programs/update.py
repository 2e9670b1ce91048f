"""SGD updates without clipping in a DeepSpeed engine: MODEL_FOLDER GUIDE lora|full LAYOUT FAMILY keep|recompute OUT.

With `shares` behind them each rank credits its own groups, whose rows move by the plan; else every rank has them all.
"""

import sys

import torch
from safetensors.torch import save_file
from support import ragged_batches
from support.deepspeed_setup import accelerator_for

from align.check.requirements import head_specs
from align.config.model_keys import Adapter, Model
from align.config.optim_keys import Optim
from align.credit import assign
from align.learner import weights
from align.learner.learner import Learner
from align.learner.passes import ForwardPasses
from align.model import layouts
from align.model.adapters import add_adapter, add_guide, guide_model
from align.model.load import load_model, load_tokenizer
from align.model.policy import Policy
from align.ranks import exchange
from align.system.clock import Clock

folder, guide, kind, layout, family, layers, out, *shares = sys.argv[1:]
updates = ragged_batches.FAMILIES[family]()
optim = Optim(
    lr=ragged_batches.RATES.get(family, 0.1),
    optimizer="sgd",
    max_grad_norm=float("inf"),
    schedule_steps=len(updates),
    checkpoint_activations=layers == "recompute",
)
accelerator = accelerator_for(optim, "float32")
model = load_model(folder, "float32")
frozen = {}
torch.manual_seed(0)
if kind == "lora":
    model = add_adapter(model, Adapter(rank=4, alpha=8), folder)
policy = Policy(model, 0.7, head_specs(objective for update in updates for objective in update))
if kind == "lora":
    add_guide(model, guide, folder)
else:
    frozen["reference"] = Policy(load_model(folder, "float32").requires_grad_(False), 0.7)
    tokenizer = load_tokenizer(folder)
    own = guide_model(guide, Model(policy=folder, dtype="float32"), folder, tokenizer)
    frozen["guide"] = Policy(own.requires_grad_(False), 0.7)
learner = Learner(accelerator, policy, getattr(layouts, layout), optim, frozen)
learner.chunk = 16  # so that logits of a micro-batch are made, and made again, in several chunks
found = {}
for i, objectives in enumerate(updates):
    # small enough for several micro-batches, then all in one
    learner.optim = optim.model_copy(update={"micro_batch_tokens": 1000 if i % 2 else 60})
    # the family's ratios are 1, so that a product of them stays one: what is off-policy is tested with gfpo
    annotate = ForwardPasses(learner, "trainer" if family == "policy" else "sampler", Clock()).for_batch()
    batch = exchange.share(ragged_batches.batch()) if shares else ragged_batches.batch()
    metrics = learner.update(learner.plan([[assign(objective, batch, annotate) for objective in objectives]]), i)
    found |= {f"loss_{i}": torch.tensor(metrics["loss"]), f"norm_{i}": torch.tensor(metrics.get("grad_norm", 0.0))}
parts = learner.model, learner.engine.module.heads
state = {name: value.clone() for part in parts for name, value in weights.trainable(part)}
if accelerator.is_main_process:
    save_file({**state, **found}, out)
accelerator.wait_for_everyone()  # as a run does: a rank that leaves early breaks the gathers of the others
accelerator.end_training()
