"""Find everything that would go wrong in a run, all at once: for `python -m align check`, and before training.

Nothing of a model's weights is read but the headers of its files. Each part goes as far as it can with what the others
found, so that a broken model hides no broken data file and no broken reward.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from huggingface_hub import get_token
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

from align.check import summary
from align.check.defaults import fill_steps
from align.check.environments import try_environments
from align.check.folders import check_out
from align.check.models import survey_guide, survey_policy
from align.check.nodes import check_nodes
from align.check.objectives import try_objectives
from align.check.requirements import (
    CheckedRun,
    check_activations,
    check_pairs,
    head_gives,
    load_banks,
    needed_context,
    needs,
    needs_sampler,
)
from align.check.rewards import ROWS, Trial, started, try_reward
from align.check.servers import try_servers
from align.check.survey import CheckError, Survey
from align.checkpoint import resume
from align.config import locations
from align.config.data_keys import Data
from align.config.experiment import Experiment
from align.config.launch import Launch, of_accelerator
from align.config.recipe import RewardLimits
from align.config.recipe_file import ConfigError, KeyPath
from align.config.redact import scrub
from align.config.rules import check_measure
from align.data.prompts import DataError
from align.data.read import is_missing, read_rows
from align.data.split import by_row, by_text, split_rows
from align.data.store import Stored, forms
from align.metrics import evaluation
from align.model.load import context_length
from align.model.locate import locate
from align.system import node
from align.system.text import for_terminal

UNLIMITED = 2**31


def survey(experiment: Experiment, launch: Launch) -> Survey:
    """Check everything but the rewards, without stopping at a problem; the same on every rank."""
    found = Survey(experiment, launch, [*experiment.problems, *launch.problems])
    recipe = experiment.recipe
    if recipe.hub and get_token() is None:
        what = "no token to push with; set HF_TOKEN or run `hf auth login`"
        found.problems.append(experiment.file.problem(("hub",), what))
    if recipe.run:
        found.attempt(check_out, experiment, key=("run", "out"))
    if recipe.model and isinstance(recipe.model.policy, str):
        survey_policy(found)
    if recipe.model and isinstance(recipe.model.guide, str):
        survey_guide(found)
    if not experiment.problems:
        found.problems += try_objectives(experiment)
    for name, source in (recipe.sources() if recipe.data else {}).items():
        _source(found, name, source)
    if recipe.run and recipe.optim and (recipe.run.steps or (found.sources and not found.problems)):
        found.experiment = fill_steps(found.experiment, found.sources)
    _together(found)
    if experiment.rewards and recipe.eval:
        found.attempt(_gate, experiment)
    return found


def try_resume(found: Survey) -> None:
    """Look for what the run would go on from, which reads a whole checkpoint. Training does so once, when it takes its
    folder, and not in its check, which every rank makes."""
    run, key = found.experiment.recipe.run, ("run", "resume")
    origin = found.attempt(resume.find, run, key=key) if run and run.steps and run.resume else None
    if origin and not found.experiment.problems:
        found.attempt(resume.changed, found.experiment, origin, key=key)


def try_rewards(found: Survey) -> dict[str, Trial]:
    """{reward or environment: its trial} on the first rows that responses would be sampled for; without rows it is only
    loaded."""
    sampled = [rows for all_rows in found.rows.values() if (rows := all_rows.of(lambda form: not form.pair))]
    rows = sampled or [rows for rows in found.rows.values() if rows]  # as in the evaluation
    tokenizer = found.tokenizer or bytewise()
    limits = found.experiment.recipe.reward_limits or RewardLimits()  # None where that section is wrong
    played, episodes = try_environments(found, rows)
    if found.experiment.recipe.environment and not episodes:
        rows = []  # nothing was played that could be scored
    with started(found.experiment.reward_functions, limits) as workers:
        some = [row for source in rows for row in source[:ROWS]]
        columns = {name for source in rows for form in forms(source) for name in form.columns}
        trials = [try_reward(worker, some, columns, tokenizer, found.experiment.file, episodes) for worker in workers]
    return played | {worker.reward.name: trial for worker, trial in zip(workers, trials, strict=True)}


def check_run(experiment: Experiment, accelerator: Accelerator) -> CheckedRun:
    """Check a run before training, its rewards too. Collective: a problem of one rank stops all.

    Rewards are tried on the main process alone, servers on the first one of each machine. Raises `CheckError` with
    every problem.
    """
    found = survey(experiment, of_accelerator(accelerator))
    problems = [*found.problems, *found.missing_stages]
    problems += try_servers(found) if accelerator.is_local_main_process else []
    if accelerator.is_main_process and found.launch.hardware.is_gpu and not problems:
        for note in summary.too_large(found, summary.setup(found)):  # an estimate that nobody measured ends no run
            accelerator.print(f"note: {note}")
    for note in found.notes:
        accelerator.print(f"note: {for_terminal(scrub(note, experiment.file.data))}")
    for trial in try_rewards(found).values() if accelerator.is_main_process else ():
        problems += trial.problems
        for note in trial.notes:
            accelerator.print(f"note: {for_terminal(scrub(note, experiment.file.data))}")
        for doubt in trial.doubts:
            text = scrub(doubt, experiment.file.data)
            accelerator.print(f"{for_terminal(text)}; rows on which it fails are masked (reward_limits)")
    problems = list(dict.fromkeys(gather_object(problems)))
    if problems:
        raise CheckError(problems)
    with accelerator.local_main_process_first():
        path = locate(experiment.recipe.model.policy)
    asked, seen = experiment.recipe.optim.layout, node.find(Path(found.experiment.recipe.run.out))
    read = (found.tokenizer, found.sources, found.banks, found.ends, found.context)
    checked = CheckedRun(found.experiment, path, *read, asked, seen)
    for line in check_nodes(checked):
        if accelerator.is_main_process:
            print(line, flush=True)
    return checked


def check_gate(experiment: Experiment, measured: Iterable[str]) -> None:
    """Raise `ConfigError` where hub.gate names a metric that is not among those measured."""
    goal = experiment.recipe.target()
    if goal and goal.gate:
        try:
            check_measure(goal.gate, measured)
        except ValueError as error:
            raise ConfigError([experiment.file.problem(("hub", "gate", "measure"), str(error))]) from error


def bytewise() -> PreTrainedTokenizerFast:
    """Make a tokenizer of one token a byte that takes any conversation: for rows whose own cannot be loaded."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(token_models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", chat_template=template)


def _source(found: Survey, name: str, source: Data) -> None:
    """Read and split the rows of a source; without the policy's tokenizer only their form is checked."""
    tokenizer, readable = found.tokenizer, source
    if tokenizer is None:
        tokenizer = bytewise()
        anything = {"max_prompt_tokens": UNLIMITED, "max_response_tokens": UNLIMITED, "chat_template_kwargs": {}}
        readable = source.model_copy(update=anything)
    if lost := _missing_files(found, name, source):
        found.problems += lost
        return
    known_by = by_row if found.experiment.recipe.environment else by_text
    rows = read_rows(readable, tokenizer, found.ends, known_by)
    found.problems += [_placed(found, name, text) for text in rows.problems]
    found.rows[name] = rows.everything
    if not found.experiment.file.data.get("environment"):  # not even one that is wrong
        found.problems += [found.placed(text) for text in _empty(rows.everything)]
    seed = found.experiment.recipe.run.seed if found.experiment.recipe.run else 0
    if not rows.problems:
        try:
            found.sources[name] = split_rows(readable, rows, seed)
        except DataError as error:
            found.problems += [_placed(found, name, text) for text in error.problems]


def _empty(rows: Stored) -> list[str]:
    """Name prompts that say nothing, which only an environment would fill."""
    empty = sum(count for form, count in forms(rows).items() if form.open)
    what = "the last message of 'prompt' is empty, and there is no environment that would fill it; write text"
    return [f"data: {empty} of {len(rows)} rows: {what}"] if empty else []


def _source_key(found: Survey, name: str) -> KeyPath:
    """Where the section of a source stands."""
    return ("data",) if isinstance(found.experiment.recipe.data, Data) else ("data", name)


def _missing_files(found: Survey, name: str, source: Data) -> list[str]:
    """Name the files of a source that are not there, each with its line and the nearest name."""
    file, out = found.experiment.file, []
    for field in ("prompts", "pairs", "eval_prompts"):
        path = getattr(source, field)
        if path and is_missing(path):
            what = f"{path}: no such file{locations.near(path, file.folder)}"
            out.append(file.problem((*_source_key(found, name), field), what))
    return out


def _placed(found: Survey, name: str, text: str) -> str:
    """Put the recipe's line before a problem of a source that begins with `data.KEY`; one of a row names its file."""
    field, _, what = text.partition(": ")
    key = field.removeprefix("data.")
    if not field.startswith("data.") or key not in Data.model_fields:
        return text
    return found.experiment.file.problem((*_source_key(found, name), key), what)


def _together(found: Survey) -> None:
    """Check models, data and objectives against each other."""
    experiment, recipe = found.experiment, found.experiment.recipe
    limit = context_length(found.config) if found.config else None
    if found.tokenizer and found.sources and recipe.sampling and needs_sampler(experiment, found.sources):
        found.context = found.attempt(needed_context, found.sources, recipe, limit)
    if found.problems:
        return
    found.attempt(check_pairs, experiment, found.sources, limit)
    if not found.missing_stages:
        loaded = found.attempt(load_banks, experiment, found.sources, found.tokenizer)
        found.banks = loaded or {}
    if needs(experiment, found.banks) & {"reward_mask", "kl_mask"} - head_gives(experiment):
        causal = found.skeleton.get_base_model() if recipe.model.adapter else found.skeleton
        found.attempt(check_activations, causal, key=("model", "policy"))


def _gate(experiment: Experiment) -> None:
    """Raise `ConfigError` for a gate on a metric of responses that no evaluation has.

    The metrics of pairs are those of their objectives, which are known once they ran.
    """
    names = evaluation.names([reward.name for reward in experiment.rewards], experiment.recipe.eval.pass_at)
    goal = experiment.recipe.target()
    if goal and goal.gate and not goal.gate.measure.startswith("pairs/"):
        check_gate(experiment, names)
