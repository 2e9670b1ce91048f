"""How often ZeRO-3 makes the head's weights whole in an update of many chunks: MODEL_FOLDER lora|full OUT."""

import json
import sys
from pathlib import Path

import torch
from deepspeed.runtime.zero import partitioned_param_coordinator as coordinator
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from support import ragged_batches
from support.deepspeed_setup import accelerator_for

from align.config.model_keys import Adapter
from align.config.optim_keys import Optim
from align.credit import assign
from align.learner.learner import Learner
from align.learner.passes import ForwardPasses
from align.model import layouts
from align.model.adapters import add_adapter
from align.model.load import load_model
from align.model.policy import Policy
from align.objectives import gfpo
from align.system.clock import Clock

folder, kind, out = sys.argv[1:]
optim = Optim(lr=0.1, optimizer="sgd", schedule_steps=1, micro_batch_tokens=60)
accelerator = accelerator_for(optim, "float32")
model = load_model(folder, "float32")
torch.manual_seed(0)
if kind == "lora":
    model = add_adapter(model, Adapter(rank=4, alpha=8), folder)
learner = Learner(accelerator, Policy(model, 0.7), layouts.padded, optim)
learner.chunk = 2
head, count = learner.engine.module.causal.get_output_embeddings().weight, [0]
name = "_PartitionedParameterCoordinator__all_gather_params"
gather = getattr(coordinator.PartitionedParameterCoordinator, name)


def counted(self, parameters, forward):
    count[0] += any(p is head and p.ds_status == ZeroParamStatus.NOT_AVAILABLE for p in parameters)
    return gather(self, parameters, forward)


setattr(coordinator.PartitionedParameterCoordinator, name, counted)
credited = assign(gfpo(k=3), ragged_batches.batch(), ForwardPasses(learner, "sampler", Clock()).for_batch())
micro_batches, found = len(learner.plan([[credited]]).micros), []
for _ in range(3):  # DeepSpeed fetches ahead once it knows the order of the modules
    count[0] = 0
    learner.update(learner.plan([[credited]]), 0)
    found.append(count[0])
if accelerator.is_main_process:
    Path(out).write_text(json.dumps({"micro_batches": micro_batches, "gathers": found}))
accelerator.wait_for_everyone()
accelerator.end_training()
