"""Does the proof in bfloat16 see what is planted? RECIPE OUT AT FAULTS [key=value ...]: healthy steps, and after
each number of them in AT (`8,30`) each fault once, up to five steps; as JSON what was found, and when."""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

from support import faults

from align.check.check import check_run
from align.checkpoint.resume import Origin
from align.config.experiment import load_experiment
from align.rollout.sync_faults import SyncError
from align.run.processes import make_accelerator, set_threads
from align.run.setup import load
from align.run.terminal import quiet
from align.system.clock import Clock

recipe, out, at, planted, *overrides = sys.argv[1:]
MOMENTS, PLANTED, WITHIN = sorted(map(int, at.split(","))), [f for f in planted.split(",") if f], 5
quiet()
set_threads()
experiment = load_experiment(recipe, overrides)
accelerator = make_accelerator(experiment)
run = load(check_run(experiment, accelerator), Origin(), accelerator)
learner, sampler = run.learner, run.sampler
generator, folder = sampler.generator, Path(out).with_suffix(".state")


def trained():
    return {name: p.detach().clone() for name, p in learner.model.named_parameters() if p.requires_grad}


def moved():
    """rms nats that the probe moved by since the start, at the newest healthy sync."""
    drift = sampler.sync_check.drift
    return float((drift.trainer - drift.start.trainer).square().mean().sqrt())


def change_of(fault):
    """A fault by its name: `scale 1.1`, `no o_proj`, `old`, `old to another bit`."""
    word, _, what = fault.partition(" ")
    if word == "scale":
        return faults.scale(float(what))
    return faults.one_step_old(trained()) if word == "old" else faults.without(what, start)


class Forgotten(list):
    """The sampler's earlier answers where it never repeats one to the bit, as not every engine does."""

    def append(self, _):
        """Forget."""

    def pop(self):
        """Have nothing."""


def plant(fault, number, done):
    """(steps until it was found, kind, message); steps None where it was not."""
    check = copy.deepcopy(sampler.sync_check)
    check.earlier = check.earlier if fault == "old" else Forgotten()
    loop = replace(run.loop, sampler=replace(sampler, sync_check=check))
    sources = [replace(source, sampler=loop.sampler) for source in loop.sources]
    loop = replace(loop, sources=sources)
    with faults.syncs_with(generator, change_of(fault)):
        for step in range(WITHIN):
            try:
                loop.step(1000 * number + done + step)  # a number of its own: the journal has nothing of it
            except SyncError as error:
                return step + 1, error.kind, str(error)
    return None, "", ""


def strength(evidence):
    """The newest sum over the root of its summed squares; below -4.5 it raises."""
    size = float(evidence[-1].square().sum().sqrt()) if evidence else 0.0
    return round(float(evidence[-1].sum()) / size, 2) if size else None


def healthy_step(done):
    """The metrics of a step, with how far each fault is from being seen."""
    metrics = run.loop.step(done).metrics
    drift = sampler.sync_check.drift
    told = {"before": strength(drift.evidence), **{other.what: strength(other.evidence) for other in drift.others}}
    kept = {name: value for name, value in metrics.items() if name.startswith(("sync/", "seconds/", "reward/mean"))}
    return {**kept, "moved": moved(), "strength": told}


start, healthy, found, alarms = trained(), [sampler.check(learner, Clock())], [], []
for done in range(MOMENTS[-1] + 1):
    if done in MOMENTS and PLANTED:
        learner.save(folder)
        for number, fault in enumerate(PLANTED, 1):
            steps, kind, message = plant(fault, number, done)
            found.append(dict(at=done, fault=fault, steps=steps, kind=kind, moved=moved(), message=message))
            learner.load(folder)
            generator.sync(learner.model)
    if done < MOMENTS[-1]:
        try:
            healthy.append(healthy_step(done))
        except SyncError as error:
            alarms.append([done + 1, error.kind, str(error)])
    if accelerator.is_main_process:
        tokens = len(sampler.sync_check.drift.probe.row)
        Path(out).write_text(json.dumps({"tokens": tokens, "healthy": healthy, "alarms": alarms, "found": found}))
accelerator.wait_for_everyone()
generator.close()
accelerator.end_training()
