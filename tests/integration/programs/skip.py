"""AdamW updates in a DeepSpeed engine, some of them not finite: MODEL_FOLDER UPDATES OUT DTYPE OFFLOAD.

UPDATES is a word for each, such as `fine,advantage,fine`: what is not finite in it. OFFLOAD: optim.offload_optimizer.
"""

import json
import sys
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from safetensors.torch import save_file
from support import ragged_batches

from align.config.model_keys import Adapter
from align.config.optim_keys import Optim
from align.credit import assign
from align.learner import weights
from align.learner.learner import Learner
from align.learner.optimizer import configure
from align.learner.passes import ForwardPasses
from align.model import layouts
from align.model.adapters import add_adapter
from align.model.load import load_model
from align.model.policy import Policy
from align.objectives import gfpo
from align.system.clock import Clock


def advantage(credited):
    """One token's credit is not a number: neither is the loss."""
    wrong = credited.batch.advantage.clone()
    wrong[tuple(credited.trained.nonzero()[0])] = torch.nan
    return replace(credited, batch=replace(credited.batch, advantage=wrong))


def loss(credited):
    """The loss is infinite, but by a constant: the gradient knows nothing of it."""
    (term,) = credited.terms
    constant = replace(term.loss, values=lambda current, batch: term.loss.values(current, batch) + torch.inf)
    return replace(credited, terms=(replace(term, loss=constant),))


def gradient(credited):
    """The loss is finite and its gradient is not."""
    (term,) = credited.terms

    def values(current, batch):
        return term.loss.values(current, batch) + (current.logprob - current.logprob.detach()).abs().sqrt()

    return replace(credited, terms=(replace(term, loss=replace(term.loss, values=values)),))


folder, updates, out, dtype, offload = sys.argv[1:]
accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
torch.manual_seed(0)
optim = Optim(lr=0.01, max_grad_norm=0.5, micro_batch_tokens=60, schedule_steps=1, offload_optimizer=offload)
configure(accelerator, optim, dtype)
model = add_adapter(load_model(folder, dtype), Adapter(rank=4, alpha=8), folder)
learner = Learner(accelerator, Policy(model, 0.7), layouts.shared_prefix, optim)
faults, metrics = {"fine": lambda credited: credited, **{f.__name__: f for f in (advantage, loss, gradient)}}, []
for word in updates.split(","):
    credited = assign(gfpo(k=3), ragged_batches.batch(), ForwardPasses(learner, "sampler", Clock()).for_batch())
    metrics.append(learner.update(learner.plan([[faults[word](credited)]]), 0))
ranks = gather_object([[row["skipped"] for row in metrics]])
state = {name: value.clone() for name, value in weights.trainable(learner.model)}
if accelerator.is_main_process:
    save_file(state, out, metadata={"skipped": json.dumps(ranks), "metrics": json.dumps(metrics)})
accelerator.wait_for_everyone()
accelerator.end_training()
