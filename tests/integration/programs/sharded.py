"""Load a model under ZeRO-3 and save it, and tell what each rank held of it: MODEL_FOLDER OUT."""

import json
import sys
from pathlib import Path

from deepspeed.runtime.zero import GatheredParameters
from support.deepspeed_setup import accelerator_for

from align.config.optim_keys import Optim
from align.learner import weights
from align.learner.learner import Learner
from align.model import layouts
from align.model.load import load_model
from align.model.policy import Policy

folder, out = sys.argv[1:]
enter, leave, write = GatheredParameters.__enter__, GatheredParameters.__exit__, weights._write_part
whole, most, written = [0], {}, []


def gather(self):
    """Count the bytes that are whole at once."""
    entered = enter(self)
    whole.append(whole[-1] + sum(p.numel() * p.element_size() for p in getattr(self, "params", [])))
    most[part] = max(most.get(part, 0), whole[-1])
    return entered


def let_go(self, *error):
    whole.pop()
    return leave(self, *error)


def note(model, state, *rest):
    written.append(sum(value.nbytes for value in state.values()))
    write(model, state, *rest)


GatheredParameters.__enter__, GatheredParameters.__exit__, weights._write_part = gather, let_go, note
weights.SHARD = 300_000
optim = Optim(optimizer="sgd", schedule_steps=1)
accelerator = accelerator_for(optim, "float32")
part = "load"
model, reference = load_model(folder, "float32"), load_model(folder, "float32")
loaded = sum(p.numel() * p.element_size() + p.ds_tensor.nbytes for p in model.parameters())
policies = Policy(model, 1.0), Policy(reference.requires_grad_(False), 1.0)
learner = Learner(accelerator, policies[0], layouts.padded, optim, {"reference": policies[1]})
frozen = sum(p.numel() * p.element_size() + p.ds_tensor.nbytes for p in reference.parameters())
part = "save"
weights.save(learner.model, Path(out, "model"), write=accelerator.is_main_process)
sizes = {"loaded": loaded, "frozen": frozen, "gathered": most, "written": written}
sizes |= {"whole": sum(p.ds_numel * p.element_size() for p in model.parameters())}
sizes |= {"largest": max(p.ds_numel * p.element_size() for p in model.parameters())}
Path(out, f"{accelerator.process_index}.json").write_text(json.dumps(sizes))
accelerator.wait_for_everyone()
accelerator.end_training()
