"""The end of a run: its adapter or model, its record, its report, and the push."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from accelerate.utils import gather_object
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from align.checkpoint.provenance import command, resolved, versions
from align.config.experiment import Experiment
from align.config.recipe import Hub
from align.config.redact import scrub_command
from align.data.prompts import fingerprint
from align.learner import weights
from align.metrics.evaluation import comparison
from align.result import record, report
from align.result.card import RunSummary, card, license_of
from align.result.push import GateShut, NotPushed, push_run, reached, store_summary
from align.result.samples import ReplayError, steps_of
from align.run.log import RunLog
from align.run.setup import Run
from align.system import files, roll
from align.system.text import for_terminal
from align.xray.data import Look
from align.xray.page import write as write_page
from align.xray.read import look


class NothingLearned(RuntimeError):
    """Every update of a run was left out."""


def finish(run: Run, log: RunLog) -> None:
    """Save what was learned, show what it is worth, push it where the recipe says so.

    Raises `NothingLearned` where every update was left out, and `DiskError` where the result cannot be written.
    """
    experiment, accelerator = run.experiment, run.accelerator
    recipe, out = experiment.recipe, run.out
    if left_out := gather_object([nothing_learned(log.steps(), recipe.optim.updates_per_step)])[0]:
        raise NothingLearned(f"{left_out}, and no result is saved; the batches are in {out / 'dumps'}")
    kind = "adapter" if recipe.model.adapter else "model"
    with whole(out / kind):
        weights.save(run.learner.model, out / kind, write=accelerator.is_main_process)
    sequences, refused = record.score(run.learner, run.tokenizer), None
    if accelerator.is_main_process:
        with files.writing(out / "curve.png"):
            report.plot(out / "metrics.jsonl", out / "curve.png")
        with whole(out / kind):
            save_tokenizer(run.tokenizer, out / kind)
            shutil.copyfile(out / "curve.png", out / kind / record.CURVE)
            record.save(out / kind, run.learner.engine.module, recipe.model.policy, sequences, versions())
        console = Console()
        found = log.evaluations()
        rows = comparison(found[0], found[-1]) if found else []
        if rows:
            console.print(report.table(rows))
        if failed := found and found[-1].get("eval/failed"):
            console.print(f"responses of the last evaluation without a reward, since one failed: {failed:.0f}")
        if rows and run.evaluation.responses:
            console.print(report.samples(*log.greedy_samples()))
        console.print(f"{recipe.run.steps} steps in {log.training_seconds():.0f} s, evaluations apart")
        places = f"{kind}: {out / kind}\ncurve: {out / 'curve.png'}\nlogs: {out / 'metrics.jsonl'}"
        console.print(Text(for_terminal(places)), soft_wrap=True)
        with files.writing(out / kind / "README.md"):
            store_summary(out, told := summary(run, rows, log))
            (out / kind / "README.md").write_text(card(told), encoding="utf-8")  # not PEFT's, which names folders
        if goal := recipe.target():
            refused = push(console, out, goal)
        look_at(run, log, console)
    accelerator.wait_for_everyone()
    roll.close()  # a node may need longer than others for what is left
    run.close()
    accelerator.end_training()
    if refused:
        raise refused


def look_at(run: Run, log: RunLog, console: Console) -> None:
    """Write the page of the run, and give it to the trackers. A record that cannot be read, as where lines were changed
    by hand, is told and leaves the result as it is."""
    page = run.out / "xray.html"
    try:
        found = page_of(run.out, run.experiment, log.evaluated_steps())
    except ReplayError as error:
        console.print(Text(for_terminal(f"no page of the tokens: {error}")), soft_wrap=True)
        return
    write_page(found, page)
    log.page(page, run.experiment.recipe.run.steps)
    console.print(Text(for_terminal(f"tokens: {page}")), soft_wrap=True)


def page_of(out: Path, experiment: Experiment | None, evaluated: Sequence[int]) -> Look:
    """The recorded steps of the first and the last evaluation, with the held-out prompts and the metrics of all.

    Raises `ReplayError`.
    """
    steps = steps_of(out / "samples.jsonl")
    shown = ends(steps, evaluated)
    found = look(out, set(shown) or None, experiment)
    if len(shown) < len(steps):
        said = f"Of {len(steps)} steps {' and '.join(map(str, shown))}"
        when = ", at the first and at the last evaluation" if evaluated else ", the first and the last"
        found = replace(found, notes=[f"{said}{when}; python -m align xray RUN shows all.", *found.notes])
    return found


def ends(steps: Sequence[int], evaluated: Sequence[int]) -> list[int]:
    """Of recorded steps the first after the first evaluation, whose responses the policy evaluated there sampled, and
    the last that the last evaluation is after; the first and the last of all where there is none."""
    first = [step for step in steps if evaluated and step > evaluated[0]] or steps
    last = [step for step in steps if evaluated and step <= evaluated[-1]] or steps
    return sorted({*first[:1], *last[-1:]})


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer; several chat templates in its configuration, which the record has, and not in a folder."""
    tokenizer.save_pretrained(folder, save_jinja_files=not isinstance(tokenizer.chat_template, dict))


@contextmanager
def whole(result: Path) -> Iterator[None]:
    """Remove a result that cannot be written whole, which is of no use and takes room. Raises `DiskError`."""
    try:
        with files.writing(result):
            yield
    except files.DiskError:
        shutil.rmtree(result, ignore_errors=True)
        raise


def nothing_learned(steps: Sequence[Mapping[str, float]], updates: int) -> str | None:
    """Say that updates were left out and none was taken, where it is so; a step has so many `updates`."""
    skipped = sum(row.get("skipped", 0) for row in steps)
    if not skipped or any("grad_norm" in row and row.get("skipped", 0) < updates for row in steps):
        return None
    return f"all {skipped} updates were left out, for loss or gradient was not finite: nothing was learned"


def push(console: Console, out: Path, goal: Hub) -> NotPushed | None:
    """Push the result; why it stays here where that is an error. A gate that stays shut is none."""
    try:
        console.print(Text(for_terminal(f"pushed: {push_run(out, goal.repo, private=goal.private)}")))
    except GateShut as error:
        console.print(Text(for_terminal(error)))
    except NotPushed as error:
        return error
    return None


def summary(run: Run, rows: list[dict], log: RunLog) -> RunSummary:
    """The facts of the run for its card; `rows` compares the first evaluation with the last."""
    recipe = run.experiment.recipe
    plain, goal, responses = resolved(run.experiment), recipe.target(), run.evaluation.responses
    licensed = goal.license if goal else None
    shown = goal.samples if goal else Hub.model_fields["samples"].default
    return RunSummary(
        base_model=recipe.model.policy,
        adapter=recipe.model.adapter is not None,
        objective=plain.get("objective") or {"objectives": plain.get("objectives")},
        config=plain,
        command=scrub_command(command(), recipe.model_dump(mode="json")),
        versions=versions(),
        evaluation=rows,
        train_prompts=sum(len(source.train) for source in run.prompts.values()),
        eval_prompts=len(responses.prompts)
        if responses
        else sum(len(source.held_out) for source in run.prompts.values()),
        steps=recipe.run.steps,
        failed=int(log.evaluations()[-1].get("eval/failed", 0)) if rows else 0,
        data=[
            {"source": name, "split": split, "rows": len(rows), "sha256": fingerprint(rows)}
            for name, source in run.prompts.items()
            for split, rows in (("training", source.train), ("held out", source.held_out))
        ],
        syncs=log.syncs(),
        gate=reached(goal.gate, log.evaluations()[-1]) if goal and goal.gate else None,
        record=record.fingerprint(run.out / ("adapter" if recipe.model.adapter else "model")),
        license=licensed or license_of(recipe.model.policy, run.learner.engine.module.causal.name_or_path),
        example=example(run, shown),
        samples=greedy(log, shown) if responses and rows else [],
        curve=record.CURVE,
    )


def example(run: Run, shown: int) -> str | list[dict]:
    """A prompt in the form of the data, for the card: held out, or a made-up one where none may be shown."""
    responses = run.evaluation.responses
    if responses and shown:
        return responses.prompts[0].prompt
    first = next(prompt for source in run.prompts.values() for prompt in source.train)
    question = "What is 7 + 5?"
    return [{"role": "user", "content": question}] if first.conversational else question


def greedy(log: RunLog, shown: int) -> list[dict]:
    """The first greedy answers to held-out prompts, for the card: rows of prompt, before and after."""
    pairs = zip(*log.greedy_samples(), strict=True)
    return [
        {"prompt": old["prompt"], "before": old["response"], "after": new["response"]}
        for old, new in itertools.islice(pairs, shown)
    ]
