"""Does the proof find what is planted? RECIPE OUT GUIDE FAILURES [key=value ...]: (mean, largest) gap of each healthy
sync and {failure: kind and message of the proof}, as JSON. Behind each failure a healthy sync must be silent again."""

import json
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import torch
from peft.tuners.lora import LoraLayer

from align.check.check import check_run
from align.checkpoint.resume import Origin
from align.config.experiment import load_experiment
from align.learner import weights
from align.model.adapters import add_adapter, add_guide
from align.rollout.sync_faults import SyncError
from align.run import setup
from align.run.processes import make_accelerator, set_threads
from align.run.setup import load
from align.run.terminal import quiet
from align.system.clock import Clock

recipe, out, guide, failures, *overrides = sys.argv[1:]
quiet()
set_threads()
experiment = load_experiment(recipe, overrides)
accelerator = make_accelerator(experiment)
own_adapter = add_adapter


def with_guide(model, adapter, base_name):
    """As for an objective that needs one."""
    model = own_adapter(model, adapter, base_name)
    add_guide(model, guide, base_name)
    return model


checked = check_run(experiment, accelerator)
with patch.object(setup, "add_adapter", with_guide):
    run = load(checked, Origin(), accelerator)
learner, sampler, merged = run.learner, run.sampler, weights.merged
generator = sampler.generator


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


def row_scaled(stream):
    """The embedding of a token that the check does not read, and the head's, which is tied to it."""
    for name, weight in stream:
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            weight[TOKEN] *= 1.5
        yield name, weight


@contextmanager
def base_row():
    """The same in the engine's own model."""

    def scale(by):
        def change(model):
            for module in model.modules():
                if type(module).__name__ == "VocabParallelEmbedding":
                    module.weight.data[TOKEN] *= by

        generator._llm.apply_model(change)

    scale(1.5)
    yield
    scale(1 / 1.5)


def noisy(weight):
    return weight * (1 + 2e-3 * torch.randn(weight.shape, dtype=weight.dtype))


TOKEN = next(token for token in range(5, 95) if token not in sampler.sync_check.ids)

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
    "frequency penalty": lambda: samples_with(frequency_penalty=0.5),
    "presence penalty": lambda: samples_with(presence_penalty=0.5),
    "a default": lambda: patch.object(generator, "_params", partial(generator._params, frequency_penalty=0.1)),
    "no end": lambda: samples_with(ignore_eos=True),
    "top-k of 80": lambda: samples_with(top_k=80),
    "top-p of 0.999": lambda: samples_with(top_p=0.999),
    "one row": lambda: streams(row_scaled),
    "one row of the base": lambda: base_row(),
}

measures = ("sync/gap", "sync/gap_max")
proved = sampler.check(learner, Clock())
gaps = [[proved[name] for name in measures]]
for step in range(4):
    record = run.loop.step(step)
    gaps.append([record.metrics[name] for name in measures])
found = {}
for failure in failures.split(","):
    learner.update(learner.plan([batch.credited for batch in record.batches]), 4)  # so that there is something to sync
    with PLANTED[failure]():
        try:
            sampler.sync(learner, Clock())
            found[failure] = ["silent", ""]
        except SyncError as error:
            found[failure] = [error.kind, str(error)]
    proved = sampler.sync(learner, Clock())
    gaps.append([proved[name] for name in measures])
if accelerator.is_main_process:
    with open(out, "w") as file:
        json.dump({"gaps": gaps, "found": found, "probe": sampler.sync_check.ids}, file, indent=None)
accelerator.wait_for_everyone()
generator.close()
accelerator.end_training()
