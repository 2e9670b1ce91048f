"""The end of a run: its adapter or model, its record, its report, and the push."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from align.checkpoint.provenance import command, resolved, versions
from align.config.recipe import Hub
from align.config.redact import scrub_command
from align.data.prompts import fingerprint
from align.learner import weights
from align.metrics.evaluation import comparison
from align.result import record, report
from align.result.card import RunSummary, card
from align.result.push import GateShut, NotPushed, push_run, reached, store_summary
from align.run.log import RunLog
from align.run.setup import Run
from align.system.text import for_terminal


def finish(run: Run, log: RunLog) -> None:
    """Save what was learned, show what it is worth, push it where the recipe says so."""
    experiment, accelerator = run.experiment, run.accelerator
    recipe, out = experiment.recipe, run.out
    kind = "adapter" if recipe.model.adapter else "model"
    weights.save(run.learner.model, out / kind, write=accelerator.is_main_process)
    sequences, refused = record.score(run.learner, run.tokenizer), None
    if accelerator.is_main_process:
        run.tokenizer.save_pretrained(out / kind)
        record.save(out / kind, run.learner.engine.module, sequences, versions())
        console = Console()
        found = log.evaluations()
        rows = comparison(found[0], found[-1]) if found else []
        report.plot(out / "metrics.jsonl", out / "curve.png")
        if rows:
            console.print(report.table(rows))
        if rows and run.evaluation.responses:
            console.print(report.samples(*log.greedy_samples()))
        console.print(f"{recipe.run.steps} steps in {log.training_seconds():.0f} s, evaluations apart")
        places = f"{kind}: {out / kind}\ncurve: {out / 'curve.png'}\nlogs: {out / 'metrics.jsonl'}"
        console.print(Text(for_terminal(places)), soft_wrap=True)
        store_summary(out, told := summary(run, rows, log))
        (out / kind / "README.md").write_text(card(told), encoding="utf-8")  # instead of PEFT's, which names folders
        if goal := recipe.target():
            refused = push(console, out, goal)
    accelerator.wait_for_everyone()
    run.close()
    accelerator.end_training()
    if refused:
        raise refused


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
        data=[
            {"source": name, "split": split, "rows": len(rows), "sha256": fingerprint(rows)}
            for name, source in run.prompts.items()
            for split, rows in (("training", source.train), ("held out", source.held_out))
        ],
        syncs=log.syncs(),
        gate=reached(goal.gate, log.evaluations()[-1]) if goal and goal.gate else None,
    )
