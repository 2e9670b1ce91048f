"""From a recipe to a trained adapter: check, load, loop, report. `recipes/train.py` calls `main`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from accelerate.utils import gather_object

from align.batch import MissingQuantity
from align.check.check import check_gate, check_run
from align.check.survey import CheckError
from align.checkpoint import checkpoint, resume
from align.checkpoint.checkpoint import CheckpointError
from align.checkpoint.identity import Change
from align.checkpoint.provenance import resolved, versions
from align.checkpoint.resume import Origin
from align.config.experiment import Experiment, examine
from align.config.recipe_file import ConfigError
from align.config.redact import scrub, scrub_tracebacks
from align.data.prompts import DataError
from align.environments.nursery import EnvironmentFailed
from align.losses.pairs import PairError
from align.model.locate import ModelError
from align.result.push import NotPushed
from align.rollout.sync_faults import SyncError
from align.run import folder
from align.run.arguments import parse
from align.run.finish import NothingLearned, finish
from align.run.log import CallbackError, RunLog
from align.run.samples import Record
from align.run.sentinel import SentinelError, Watch
from align.run.setup import Run, load, make_accelerator, set_threads
from align.run.terminal import evaluation_of, is_main, progress, quiet, say, stage, tell_imports
from align.scoring.worker import RewardError
from align.system.blame import UserExit, no_exit
from align.system.clock import Clock
from align.system.deadline import DeadlineError
from align.system.files import DiskError
from align.system.lock import HeldError
from align.system.parent import end_with_launcher, say_last

USER_ERRORS = (
    *(CheckError, ConfigError, DataError, ModelError, CheckpointError, RewardError, PairError, MissingQuantity),
    *(SentinelError, SyncError, DeadlineError, NotPushed, FileNotFoundError, DiskError, HeldError, NothingLearned),
    *(UserExit, CallbackError, EnvironmentFailed),
)

OWN_ERRORS = (
    RewardError,
    EnvironmentFailed,
    DeadlineError,
    DiskError,
    UserExit,
    CallbackError,
)  # of one rank; the others fail on all alike


def main(arguments: list[str]) -> int:
    """Train as `RECIPE [key=value ...] [--resume]` says; the exit code."""
    asked = parse(arguments)
    if isinstance(asked, int):
        return asked
    scrub_tracebacks()
    end_with_launcher()
    quiet()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as recipes/train.py leaves it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    experiment = None
    try:
        experiment = examine(asked.recipe, asked.overrides)
        scrub_tracebacks(experiment.file.data)
        with no_exit("a function that the recipe names"):
            run(resume.in_place(experiment) if asked.resume and experiment.recipe.run else experiment)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a launcher sends it once more
        if is_main():
            say_last("interrupted; go on with the same command and --resume (instead of run.resume, where that is set)")
        return 130
    except USER_ERRORS as error:
        if int(os.environ.get("LOCAL_RANK", "0")) == 0 or isinstance(error, OWN_ERRORS):
            say_last(scrub(str(error), experiment.file.data if experiment else ()))
        return 1
    return 0


def run(experiment: Experiment) -> None:
    """Train as the recipe says, and report."""
    tell_imports()
    set_threads()
    with stage("DeepSpeed", "(compiles at the first start)"):
        accelerator = make_accelerator(experiment)
    with stage("check"):
        checked = check_run(experiment, accelerator)
    with ExitStack() as held:
        origin = folder.take(checked.experiment, accelerator, held)
        loaded = load(replace(checked, experiment=resume.starting_at(checked.experiment, origin)), origin, accelerator)
        train(loaded, origin)


def train(loaded: Run, origin: Origin) -> None:
    """Take the run from its origin to its end."""
    changes = resume.changed(loaded.experiment, origin)
    start(loaded, origin, changes)
    settings = loaded.experiment.recipe.run
    record = Record(settings.samples, settings.seed, settings.samples_part_mib * 2**20)
    log = RunLog(loaded.out, loaded.accelerator, origin.step, loaded.experiment.callbacks, record)
    log.describe(resolved(loaded.experiment), versions(), folder.noted(origin, changes, loaded.out))
    first_evaluation(loaded, log, origin.step)
    steps(loaded, log, origin.step)
    last = loaded.experiment.recipe.run.steps
    if loaded.evaluation.has_eval and not gather_object([log.evaluated(last)])[0]:  # as the main process has it
        evaluate(loaded, log, last)
    finish(loaded, log)


def start(run: Run, origin: Origin, changes: Sequence[Change]) -> None:
    """Tell what the run goes on from, with what it changes, and give the sampler the policy that it starts with."""
    if run.accelerator.is_main_process and (origin.in_place or origin.checkpoint):
        then = resume.versions_then(origin, run.out)
        say(scrub(resume.explain(origin, run.out, run.journal.kept(origin.step), then, versions(), changes)))
    adapter = run.experiment.recipe.model.adapter
    if origin.checkpoint:
        checkpoint.load(origin.checkpoint, run.learner, run.experiment.objectives)
    if origin.in_place and run.accelerator.is_main_process:
        checkpoint.set_later_aside(run.out / "checkpoints", origin.step)
        run.tidy(origin.step)  # it may have been killed just before
    if run.sampler:
        with stage("sampler check"):
            # from the base, which is what the sampler loaded
            moved = origin.checkpoint or (adapter and adapter.start) or run.experiment.recipe.model.quantize
            _ = run.sampler.sync(run.learner, Clock()) if moved else run.sampler.check(run.learner, Clock())
        if run.loop.sampler is None:
            run.sampler.sleep()  # an evaluation hands it the policy anew


def first_evaluation(run: Run, log: RunLog, step: int) -> None:
    """Evaluate the policy before it is trained; a resumed run has that already. Raises `ConfigError` where hub.gate
    asks for a measure that it does not have."""
    if found := log.evaluations():
        check_gate(run.experiment, found[-1])
    elif run.evaluation.has_eval:
        with stage("first evaluation") as notes:
            metrics, greedy = run.evaluation.run()
            notes.append(evaluation_of(metrics))
        check_gate(run.experiment, metrics)
        log.evaluation(step, metrics, greedy)


def evaluate(run: Run, log: RunLog, step: int) -> None:
    """Evaluate after so many steps, and tell it in one line."""
    start = time.perf_counter()
    metrics, greedy = run.evaluation.run()
    log.evaluation(step, metrics, greedy)
    say(f"evaluation at step {step}  {evaluation_of(metrics)}  {time.perf_counter() - start:.1f} s")


def steps(run: Run, log: RunLog, start: int) -> None:
    """Take all steps, with the evaluations and checkpoints on the way."""
    settings, accelerator = run.experiment.recipe.run, run.accelerator
    watch = Watch(run, log)
    with progress(settings.steps, start) as display:
        for step in range(start, settings.steps):
            record = run.loop.step(step)
            done = step + 1
            verdict = watch.judge(done, record.metrics)
            log.step(done, {**record.metrics, **verdict.flags}, record.batches, record.outputs)
            display.step(done, record.metrics)
            for alarm in verdict.alarms:
                say(f"step {done}: {alarm}", "bold red", display.console)
            watch.act(done, verdict, record.batches)
            if run.evaluation.has_eval and due(done, settings.eval_every):
                evaluate(run, log, done)
            if done == settings.steps or due(done, settings.save_every):
                log.to_disk()
                run.save(done)
                if accelerator.is_main_process:
                    run.tidy(done)


def due(step: int, every: int | None) -> bool:
    """Whether something that happens every so many steps happens at this one; never for None."""
    return every is not None and step % every == 0


if __name__ == "__main__":
    sys.exit("this is the module behind it; run `align train RECIPE`, or `python recipes/train.py RECIPE`")
