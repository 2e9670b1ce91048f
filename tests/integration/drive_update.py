"""Two SGD updates without clipping in a DeepSpeed engine: MODEL_FOLDER lora|full OUT."""

import sys

import ragged
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from safetensors.torch import save_file

from align import layouts, models, weights
from align.config import Adapter, Optim
from align.learner import Learner
from align.policy import Policy

folder, kind, layout, out = sys.argv[1:]
accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])


def fresh():
    model = models.load_model(folder, "float32")
    if kind == "full":
        return model
    torch.manual_seed(0)
    return models.add_adapter(model, Adapter(rank=4, alpha=8), "tiny")


optim = Optim(lr=0.1, optimizer="sgd", max_grad_norm=float("inf"), micro_batch_tokens=48, schedule_steps=2)
reference = Policy(fresh().requires_grad_(False), 0.7) if kind == "full" else None
learner = Learner(accelerator, Policy(fresh(), 0.7), getattr(layouts, layout), optim, reference)
metrics = [learner.update(ragged.credits(learner), 0)]
learner.optim = optim.model_copy(update={"micro_batch_tokens": 1000})
metrics.append(learner.update(ragged.credits(learner), 1))
state = weights.trainable(learner.model)
if accelerator.is_main_process:
    losses = {f"loss_{i}": torch.tensor(m["loss"]) for i, m in enumerate(metrics)}
    norms = {f"norm_{i}": torch.tensor(m["grad_norm"]) for i, m in enumerate(metrics)}
    save_file({**state, **losses, **norms}, out)
