"""From a recipe to everything that a step needs: data, models, engine, sampler; checked before it is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import add_response_schema

from align.check.requirements import REFERENCE, CheckedRun, head_specs, needs
from align.checkpoint import checkpoint, identity, resume
from align.checkpoint.provenance import decided, resolved, versions
from align.checkpoint.resume import Origin
from align.config.experiment import Experiment
from align.config.recipe_file import ConfigError
from align.data.bank import Bank
from align.data.prompts import Prompts, pairs_in
from align.data.store import longest, shortest
from align.environments.nursery import Nursery
from align.learner.learner import Learner
from align.learner.optimizer import configure
from align.learner.support import check_attention, check_head, packs
from align.loop import Loop
from align.model import layouts
from align.model.adapter_files import is_adapter, start_folder
from align.model.adapters import ModelRole, add_adapter, add_guide, guide_model, start_from
from align.model.cut import Cut
from align.model.load import load_model
from align.model.locate import loading_name
from align.model.policy import Policy
from align.rollout import environments
from align.rollout.environments import Environment, Environments
from align.rollout.generator import Generator
from align.rollout.journal import Journal
from align.rollout.rollouts import Process, Scorer
from align.rollout.sampler import Sampler
from align.rollout.sources import PairSource, RolloutSource, Source
from align.rollout.sync_check import ROWS as DRIFT_ROWS
from align.rollout.sync_check import SyncCheck, choose, start_drift
from align.run.engine import make_generator
from align.run.evaluation import Evaluation, ResponseEvaluation, eval_prompts, has_rollouts
from align.run.terminal import say, stage
from align.scoring.worker import Worker, close
from align.system import baton
from align.system.hardware import gpus


@dataclass(frozen=True)
class Run:
    """Everything that a training run holds once it is loaded."""

    experiment: Experiment  # with every default filled in
    accelerator: Accelerator
    tokenizer: PreTrainedTokenizerBase
    prompts: Mapping[str, Prompts]  # of each source
    learner: Learner
    sampler: Sampler | None  # None where nothing is ever sampled
    workers: Sequence[Worker]  # of the rewards, each reward's side by side
    journal: Journal
    loop: Loop
    evaluation: Evaluation

    @property
    def out(self) -> Path:
        """The folder that the run writes to."""
        return Path(self.experiment.recipe.run.out)

    def save(self, done: int) -> None:
        """Write a checkpoint after so many steps. Collective. Raises `CheckpointError`."""
        recipe = identity.followed(resolved(self.experiment))
        state = checkpoint.state_at(done, self.learner, self.experiment.objectives, self.journal.lineage, recipe)
        checkpoint.save(self.out / "checkpoints", self.learner, state)

    def tidy(self, done: int) -> None:
        """Remove the checkpoints beyond `run.keep`, and the rollouts that the newest one has made of no use."""
        checkpoint.tidy(self.out / "checkpoints", self.experiment.recipe.run.keep)
        self.journal.forget(done)

    def close(self) -> None:
        """End the engine and the processes of the rewards; before the trainer ends its own process group."""
        if self.sampler:
            self.sampler.close()
        close(self.workers)


def load(checked: CheckedRun, origin: Origin, accelerator: Accelerator) -> Run:
    """Load the policy with its heads, reference and guide if something needs them, the engine and the sampler.

    Collective. Raises `ConfigError`, `ModelError`, `RewardError` and `EnvironmentFailed`.
    """
    experiment, tokenizer = checked.experiment, checked.tokenizer
    recipe, sampled = experiment.recipe, checked.context is not None
    rank = accelerator.process_index
    workers = start_workers(experiment, rank) if sampled else []  # they load meanwhile
    nurseries = environments.start(recipe, rank) if sampled else {}
    with stage("models"):
        learner = load_learner(checked, accelerator)
    experiment = check_packing(experiment, checked.asked_layout, learner)
    sampler = None
    if sampled:
        compiles = recipe.sampling.engine == "vllm" and recipe.sampling.compile
        with stage("engine", "(compiles at the first start)" if compiles else ""):
            generator = make_generator(checked, learner)
        process = Process(rank, accelerator.num_processes, recipe.sampling.tensor_parallel)
        sync_check = make_sync_check(experiment, checked.sources, generator, learner)
        played = environments_of(checked, nurseries) if nurseries else None
        sampler = Sampler(generator, sync_check, process, recipe.sampling, played)
    for worker in workers:
        worker.wait()
    scorer = Scorer(workers, experiment, tokenizer, say)
    lineage = resume.lineage(origin, decided(experiment), versions(), accelerator.num_processes)
    # processes that share an engine sample together, so either all of them read their entries or none does
    agreed = all_say if recipe.sampling.tensor_parallel > 1 else bool
    journal = Journal(Path(recipe.run.out) / "rollouts", lineage, agreed)
    sources = make_sources(replace(checked, experiment=experiment), sampler, scorer, journal)
    training_sampler = sampler if has_rollouts(experiment) else None
    loop = Loop(sources, learner, training_sampler, recipe.optim.updates_per_step, recipe.sampling.old_logprob)
    evaluation = make_evaluation(experiment, checked.sources, sources, learner, sampler, scorer)
    prompts = checked.sources
    return Run(experiment, accelerator, tokenizer, prompts, learner, sampler, workers, journal, loop, evaluation)


def start_workers(experiment: Experiment, rank: int) -> list[Worker]:
    """The processes of the rewards; what those of one reward print goes to a file of this rank in `run.out`."""
    folder, end = Path(experiment.recipe.run.out) / "rewards", f"-{rank}.log" if rank else ".log"
    limits = experiment.recipe.reward_limits
    asked = [reward for reward in experiment.reward_functions for _ in range(limits.processes)]
    return [Worker(reward, limits, folder / f"{reward.name}{end}") for reward in asked]


def environments_of(checked: CheckedRun, nurseries: Mapping[str, Nursery]) -> Environments:
    """The environments of the recipe once they are loaded. Raises `EnvironmentFailed`."""
    recipe, tokenizer = checked.experiment.recipe, checked.tokenizer
    sections = recipe.environments()
    by_name = {name: Environment(name, sections[name], one, one.wait()) for name, one in nurseries.items()}
    if any(one.offers.contract == "tools" for one in by_name.values()):
        tokenizer = copy(tokenizer)
        add_response_schema(tokenizer)  # by which calls are read; the result's tokenizer stays as it is
    return Environments(by_name, recipe.sampling, checked.context, tokenizer, checked.ends)


def load_learner(checked: CheckedRun, accelerator: Accelerator) -> Learner:
    """The policy with its heads, and the frozen models, in the engine. Collective. Raises `ModelError`."""
    experiment, recipe = checked.experiment, checked.experiment.recipe
    configure(accelerator, recipe.optim, recipe.model.dtype)
    model = load_model(checked.path, recipe.model.dtype, recipe.model.quantize)
    torch.manual_seed(recipe.run.seed)  # the first weights of adapter and heads
    if recipe.model.adapter:
        model = add_adapter(model, recipe.model.adapter, loading_name(recipe.model.policy))
        if start := recipe.model.adapter.start:
            start_from(model, start_folder(start))
    cut, heads = Cut.of(recipe.sampling), head_specs(experiment.objectives)
    policy = Policy(model, recipe.sampling.temperature, heads, cut)
    frozen = load_frozen(experiment, needs(experiment, checked.banks), checked.path, model, checked.tokenizer)
    layout = layouts.layout_on(accelerator.device.type, recipe.optim.layout)
    learner = Learner(accelerator, policy, layout, recipe.optim, frozen)
    check_attention()
    check_head(learner)
    return learner


def make_sources(checked: CheckedRun, sampler: Sampler | None, scorer: Scorer, journal: Journal) -> list[Source]:
    """The sources of each step, in the order of the recipe."""
    experiment, out = checked.experiment, []
    recipe, tokenizer = experiment.recipe, checked.tokenizer
    for number, (name, data) in enumerate(recipe.sources().items()):
        prompts, mine = checked.sources[name], [o for o in experiment.objectives if o.data in (None, name)]
        if data.sampled:
            out.append(RolloutSource(name, number, prompts, mine, recipe, tokenizer, sampler, scorer, journal))
        else:
            bank = checked.banks.get(name, Bank({}, ()))
            out.append(PairSource(name, prompts, mine, recipe, tokenizer, bank))
    return out


def make_evaluation(
    experiment: Experiment,
    prompts: Mapping[str, Prompts],
    sources: Sequence[Source],
    learner: Learner,
    sampler: Sampler | None,
    scorer: Scorer,
) -> Evaluation:
    """The evaluation of what was held out."""
    responses, judged = None, eval_prompts(experiment, prompts)
    if sampler and judged:
        synced = has_rollouts(experiment)
        responses = ResponseEvaluation(experiment, judged, scorer.tokenizer, learner, sampler, scorer, synced)
    pairs = [s for s in sources if isinstance(s, PairSource) and pairs_in(s.prompts.held_out)]
    return Evaluation(responses, pairs, learner, experiment.recipe.sampling.old_logprob)


def load_frozen(
    experiment: Experiment,
    needed: set[str],
    path: str,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[ModelRole, Policy]:
    """Reference and guide, if needed: of a policy with an adapter the reference is its base or the adapter that it
    starts from, and a guide that is an adapter sits beside it; else each is a model of its own."""
    recipe, out = experiment.recipe, {}

    def frozen(model: torch.nn.Module) -> Policy:
        return Policy(model.requires_grad_(False), recipe.sampling.temperature)

    if needed & REFERENCE and not recipe.model.adapter:
        out["reference"] = frozen(load_model(path, recipe.model.dtype))
    if "guide_logprob" in needed:
        guide = recipe.model.guide
        if recipe.model.adapter and is_adapter(guide):
            add_guide(model, guide, recipe.model.policy)
        else:
            out["guide"] = frozen(guide_model(guide, recipe.model, path, tokenizer))
    return out


def check_packing(experiment: Experiment, asked: str | None, learner: Learner) -> Experiment:
    """Switch to padded rows where packing a few rows changes a model's log-probabilities. Raises `ConfigError` where
    the recipe asked for packing."""
    if learner.layout is layouts.padded:
        return experiment
    packed = [packs(module) for module in (learner.engine, *learner.frozen.values())]
    if all(packed):
        return experiment
    if asked:
        problem = "packing changes log-probabilities of the policy, the reference or the guide; write padded"
        raise ConfigError([experiment.file.problem(("optim", "layout"), problem)])
    learner.accelerator.print("rows of these models cannot be packed behind their prompts: padded, which is slower")
    learner.layout, recipe = layouts.padded, experiment.recipe
    optim = recipe.optim.model_copy(update={"layout": layouts.padded.name})
    return replace(experiment, recipe=recipe.model_copy(update={"optim": optim}))


def all_say(yes: bool) -> bool:
    """Whether all ranks say so. Collective."""
    return all(gather_object([yes]))


def make_sync_check(
    experiment: Experiment, sources: Mapping[str, Prompts], generator: Generator, learner: Learner
) -> SyncCheck:
    """The check of each sync: on tokens of the longest prompt, and in bfloat16 also on responses to short ones. They
    are chosen before anything is trained, so that a resumed run has the same."""
    rows = [part for source in sources.values() for part in (source.train, source.held_out) if part]
    recipe, drift = experiment.recipe, None
    roomy = recipe.sampling.max_response_tokens > 1  # for a response, and the token that an engine samples behind it
    if recipe.model.dtype == "bfloat16" and recipe.sampling.engine == "vllm" and roomy:  # which has its own weights
        short = [ids for part in rows for ids in shortest(part, DRIFT_ROWS)]
        drift = start_drift(generator, learner, short, recipe.sampling)
    return SyncCheck(choose(learner, max((longest(part).ids for part in rows), key=len)), recipe.sampling, drift)


PATIENCE = timedelta(hours=6)  # of ranks for each other; what can hang has limits of its own


def make_accelerator(experiment: Experiment) -> Accelerator:
    """Join the processes of the run; DeepSpeed builds its op here where it is not built yet. Raises `ConfigError`
    where the launcher does not start DeepSpeed, or more processes than this machine has GPUs."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true":
        alone = "python recipes/train.py RECIPE without a launcher (one process)"
        raise ConfigError(
            [f"no DeepSpeed: start with accelerate launch --config_file launch/cpu_zero2.yaml, or {alone}"]
        )
    ranks, have = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), gpus()
    if 0 < have < ranks:
        what = f"{ranks} processes on a machine with {have} GPU{'s' if have > 1 else ''}"
        raise ConfigError([f"{what}; launch with --num_processes {have}"])
    baton.install()
    backend = "nccl" if torch.cuda.is_available() else "gloo"  # accelerate names none without an accelerator
    run = experiment.recipe.run  # None where it is wrong, which the check is about to say
    return Accelerator(
        log_with=list(run.trackers) or None if run else None,
        project_dir=run.out if run else None,
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=PATIENCE)],
    )


def set_threads() -> None:
    """accelerate exports OMP_NUM_THREADS=1; on a CPU this rank's share of the cores is what it should use."""
    if not torch.cuda.is_available():
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))
