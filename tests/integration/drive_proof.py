"""Does the proof find what is planted? RECIPE OUT GUIDE FAILURES [key=value ...]: (mean, largest) gap of each healthy
sync and {failure: kind and message of the proof}, as JSON. Behind each failure a healthy sync must be silent again."""

import json
import sys
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from peft.tuners.lora import LoraLayer

from align import check, config, models, weights
from align.passes import Clock
from align.prepare import make_accelerator, prepare, set_threads
from align.proof import SyncError
from align.train import quiet

recipe, out, guide, failures, *overrides = sys.argv[1:]
quiet()
set_threads()
experiment = config.load(recipe, overrides)
accelerator = make_accelerator(experiment)
own_adapter = models.add_adapter


def with_guide(model, adapter, base_name):
    """As for an objective that needs one."""
    model = own_adapter(model, adapter, base_name)
    models.add_guide(model, guide, base_name)
    return model


ground = check.passed(experiment, accelerator)
with patch.object(models, "add_adapter", with_guide):
    loop = prepare(ground, accelerator)
learner, generator, merged = loop.learner, loop.generator, weights.merged


def streams(change):
    """The sync sends what `change` makes of the stream of weights."""
    return patch.object(weights, "merged", lambda model: change(merged(model)))


def every(change):
    return streams(lambda stream: ((name, change(weight)) for name, weight in stream))


def samples_with(**other):
    """Each request gets other settings than `generate` asks for."""
    own = generator._sample
    return patch.object(generator, "_sample", lambda *prompts, **settings: own(*prompts, **{**settings, **other}))


@contextmanager
def merges(adapter):
    """Another adapter is merged, or none."""
    layers = [module for module in learner.model.modules() if isinstance(module, LoraLayer)]
    with ExitStack() as stack:
        for layer in layers:
            own = layer.get_delta_weight
            delta = (lambda _, own=own: own(adapter)) if adapter else (lambda name, own=own: 0 * own(name))
            stack.enter_context(patch.object(layer, "get_delta_weight", delta))
        yield


def serves(request):
    """The sampler asks for another adapter than the one synced."""
    return patch.object(generator, "sync", lambda model: setattr(generator, "_lora", request()))


def noisy(weight):
    return weight * (1 + 2e-3 * torch.randn(weight.shape, dtype=weight.dtype))


PLANTED = {
    "sync skipped": lambda: patch.object(generator, "sync", lambda model: None),
    "no adapter merged": lambda: merges(None),
    "guide merged": lambda: merges("guide"),
    "no adapter passed": lambda: serves(lambda: None),
    "guide passed": lambda: serves(lambda: generator._lora_request("guide", 999, guide)),
    "merged in bfloat16": lambda: every(lambda weight: weight.bfloat16().to(weight.dtype)),
    "merged with noise": lambda: every(noisy),
    "another model": lambda: every(lambda weight: weight.flip(0)),
    "head not streamed": lambda: streams(lambda stream: ((n, w) for n, w in stream if n != "lm_head.weight")),
    "temperature forgotten": lambda: samples_with(temperature=1.0),
    "another temperature": lambda: samples_with(temperature=0.8),
    "top-p": lambda: samples_with(top_p=0.95),
    "top-k": lambda: samples_with(top_k=50),
    "the model's own settings": lambda: patch.object(generator, "_plain", learner.model.generation_config),
    "min-p": lambda: samples_with(min_p=0.02),
}

measures = ("sync/gap", "sync/gap_max")
proved = loop.prove(Clock())
gaps = [[proved[name] for name in measures]]
for step in range(4):
    metrics, (taken,) = loop.step(step)
    gaps.append([metrics[name] for name in measures])
found = {}
for failure in failures.split(","):
    learner.update([taken.credits], 4)  # so that there is something to sync
    with PLANTED[failure]():
        try:
            loop.sync(Clock())
            found[failure] = ["silent", ""]
        except SyncError as error:
            found[failure] = [error.kind, str(error)]
    proved = loop.sync(Clock())
    gaps.append([proved[name] for name in measures])
if accelerator.is_main_process:
    with open(out, "w") as file:
        json.dump({"gaps": gaps, "found": found, "probe": loop.proof.ids}, file, indent=None)
accelerator.wait_for_everyone()
generator.close()
accelerator.end_training()
