"""From a recipe to a trained adapter: check, load, loop, report. `recipes/train.py` calls `main`."""

from __future__ import annotations

import argparse
import ctypes
import itertools
import logging
import os
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text
from transformers.utils.logging import disable_progress_bar

from align import check, checkpoint, config, data, hub, publish, record, report, resume, weights, workers
from align.batch import MissingQuantity
from align.check import CheckError
from align.checkpoint import CheckpointError
from align.config import Experiment
from align.data import DataError
from align.deadline import DeadlineError
from align.evaluation import comparison
from align.files import DiskError
from align.journal import Journal
from align.loop import Loop
from align.losses import PairError
from align.models import ModelError
from align.passes import Clock
from align.prepare import make_accelerator, prepare, set_threads
from align.proof import SyncError
from align.provenance import command, decided, resolved, versions
from align.publish import GateShut, NotPushed
from align.recipe import Hub
from align.redact import scrub
from align.resume import Origin
from align.runlog import RunLog
from align.schema import ConfigError
from align.watch import SentinelError, Watch
from align.workers import RewardError

USER_ERRORS = (
    *(CheckError, ConfigError, DataError, ModelError, CheckpointError, RewardError, PairError, MissingQuantity),
    *(SentinelError, SyncError, DeadlineError, NotPushed, FileNotFoundError, DiskError),
)
OWN_ERRORS = (RewardError, DeadlineError, DiskError)  # of one rank; the others fail on all alike


def main(arguments: list[str]) -> int:
    """`RECIPE [key=value ...] [--resume]`. Returns the exit code."""
    usage = "accelerate launch --config_file launch/cpu.yaml recipes/train.py RECIPE [key=value ...] [--resume]"
    parser = argparse.ArgumentParser(usage=usage)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--resume", action="store_true", help=f"go on with the run in run.out. {resume.EXACT}")
    asked = parser.parse_intermixed_args(arguments)
    end_with_launcher()
    quiet()
    experiment = None
    try:
        experiment = config.examine(asked.recipe, asked.overrides)
        run(resume.in_place(experiment) if asked.resume and experiment.recipe.run else experiment)
    except USER_ERRORS as error:
        if int(os.environ.get("LOCAL_RANK", "0")) == 0 or isinstance(error, OWN_ERRORS):
            print(scrub(str(error), experiment.source.data if experiment else ()), file=sys.stderr)
        return 1
    return 0


def run(experiment: Experiment) -> None:
    """Train as the recipe says, and report."""
    set_threads()
    accelerator = make_accelerator(experiment)
    ground = check.passed(experiment, accelerator)
    recipe, origin = experiment.recipe, resume.agree(experiment.recipe.run, accelerator)
    loop = prepare(replace(ground, experiment=resume.recorded(ground.experiment, origin)), accelerator)
    out, plain, now = Path(recipe.run.out), resolved(loop.experiment), versions()
    journal = Journal(
        out / "rollouts", resume.lineage(origin, decided(loop.experiment), now, accelerator.num_processes)
    )
    loop = replace(loop, journal=journal)
    if accelerator.is_main_process:
        set_aside(out, origin)
        if origin.in_place:
            tidy(loop, origin.step)  # it may have been killed just before
        if recipe.run.resume:
            then = resume.versions_then(origin, out)
            print(resume.explain(origin, out, journal.kept(origin.step), then, now))
    if origin.checkpoint:
        checkpoint.load(origin.checkpoint, loop.learner, experiment.objectives)
    if loop.generator:
        _ = loop.sync(Clock()) if origin.checkpoint else loop.prove(Clock())
    log = RunLog(out, accelerator, origin.step)
    log.describe(plain, now)
    if found := log.evaluations():
        check.check_gate(experiment, found[-1])
    elif loop.held_out:
        metrics, greedy = loop.evaluate()
        check.check_gate(experiment, metrics)
        log.evaluation(origin.step, metrics, greedy)
    steps(loop, log, origin.step)
    last = recipe.run.steps
    if loop.held_out and not gather_object([log.evaluated(last)])[0]:  # as the main process has it
        log.evaluation(last, *loop.evaluate())
    finish(loop, log)


def set_aside(out: Path, origin: Origin) -> None:
    """Rename what stands where this run will write: an earlier run, or checkpoints behind the one to go on from."""
    if origin.in_place:
        checkpoint.set_later_aside(out / "checkpoints", origin.step)
    elif (out / "metrics.jsonl").exists():
        free = next(n for n in itertools.count(1) if not out.with_name(f"{out.name}.{n}").exists())
        out.rename(out.with_name(f"{out.name}.{free}"))


def steps(loop: Loop, log: RunLog, start: int) -> None:
    """All steps with the evaluations and checkpoints on the way."""
    recipe, accelerator = loop.experiment.recipe, loop.learner.accelerator
    watch = Watch(loop, log)
    with progress(accelerator) as bar:
        task = bar.add_task("training", total=recipe.run.steps, completed=start, state="")
        for step in range(start, recipe.run.steps):
            metrics, taken = loop.step(step)
            done = step + 1
            verdict = watch.judge(done, metrics)
            log.step(done, {**metrics, **verdict.flags}, taken)
            bar.update(task, completed=done, state=state_of(metrics))
            for alarm in verdict.alarms if log.writes else ():
                bar.console.print(Text(f"step {done}: {alarm}", style="bold red"), soft_wrap=True)
            watch.act(done, verdict, taken)
            final = done == recipe.run.steps
            if loop.held_out and due(done, recipe.run.eval_every):
                log.evaluation(done, *loop.evaluate())
            if final or due(done, recipe.run.save_every):
                log.to_disk()
                loop.save(done)
                if accelerator.is_main_process:
                    tidy(loop, done)


def tidy(loop: Loop, done: int) -> None:
    """Remove the checkpoints beyond `run.keep`, and the rollouts that the newest one has made of no use."""
    run = loop.experiment.recipe.run
    checkpoint.tidy(Path(run.out) / "checkpoints", run.keep)
    loop.journal.forget(done)


def state_of(metrics: dict[str, float]) -> str:
    """What the progress bar shows of a step."""
    if "reward/mean" in metrics:
        return f"reward {metrics['reward/mean']:.2f}  length {metrics['response/length']:.1f}"
    return f"loss {metrics['loss']:.3f}"


def due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def finish(loop: Loop, log: RunLog) -> None:
    """Save what was learned, show what it is worth, push it where the recipe says so."""
    experiment, accelerator = loop.experiment, loop.learner.accelerator
    recipe, out = experiment.recipe, Path(experiment.recipe.run.out)
    kind = "adapter" if recipe.model.adapter else "model"
    weights.save(loop.learner.model, out / kind, write=accelerator.is_main_process)
    probes, refused = record.score(loop.learner, loop.tokenizer), None
    if accelerator.is_main_process:
        loop.tokenizer.save_pretrained(out / kind)
        record.save(out / kind, loop.learner.engine.module, probes, versions())
        console = Console()
        found = log.evaluations()
        rows = comparison(found[0], found[-1]) if found else []
        report.plot(out / "metrics.jsonl", out / "curve.png")
        if rows:
            console.print(report.table(rows))
        if rows and loop.generator and loop.judged:
            console.print(report.samples(*log.greedy_samples()))
        console.print(f"{recipe.run.steps} steps in {log.training_seconds():.0f} s, evaluations apart")
        console.print(f"{kind}: {out / kind}\ncurve: {out / 'curve.png'}\nlogs: {out / 'metrics.jsonl'}")
        publish.store(out, summary(loop, rows, log))
        if goal := recipe.target():
            refused = push(console, out, goal)
    accelerator.wait_for_everyone()
    if loop.generator:
        loop.generator.close()
    workers.close(loop.workers)
    accelerator.end_training()
    if refused:
        raise refused


def push(console: Console, out: Path, goal: Hub) -> NotPushed | None:
    """Push the result; why it stays here where that is an error. A gate that stays shut is none."""
    try:
        console.print(f"pushed: {publish.push(out, goal.repo, private=goal.private)}")
    except GateShut as error:
        console.print(error)
    except NotPushed as error:
        return error
    return None


def summary(loop: Loop, rows: list[dict], log: RunLog) -> hub.RunSummary:
    recipe = loop.experiment.recipe
    plain, goal = resolved(loop.experiment), recipe.target()
    return hub.RunSummary(
        base_model=recipe.model.policy,
        adapter=recipe.model.adapter is not None,
        objective=plain.get("objective") or {"objectives": plain.get("objectives")},
        config=plain,
        command=scrub(command(), recipe.model_dump(mode="json")),
        versions=versions(),
        evaluation=rows,
        train_prompts=sum(len(source.train) for source in loop.sources.values()),
        eval_prompts=len(loop.judged) or sum(len(source.held_out) for source in loop.sources.values()),
        steps=recipe.run.steps,
        data=[
            {"source": name, "split": split, "rows": len(rows), "sha256": data.fingerprint(rows)}
            for name, source in loop.sources.items()
            for split, rows in (("training", source.train), ("held out", source.held_out))
        ],
        syncs=log.syncs(),
        gate=publish.reached(goal.gate, log.evaluations()[-1]) if goal and goal.gate else None,
    )


def progress(accelerator: Accelerator) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not accelerator.is_main_process,
    )


def end_with_launcher() -> None:
    """Where `accelerate launch` is killed, its processes would go on, beside the run that is resumed (Linux only)."""
    if "LOCAL_RANK" in os.environ and sys.platform == "linux":
        set_parent_death_signal = 1  # of sys/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def quiet() -> None:
    """Leave the terminal to the progress bar; warnings and errors still come through."""
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # vLLM and torch talking to each other
    for name in ("DeepSpeed", "deepspeed", "vllm", "transformers", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
