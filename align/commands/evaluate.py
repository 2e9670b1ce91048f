"""`align evaluate`: the held-out evaluation of a recipe alone, of its policy as it starts or of a trained adapter."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from align.check.check import check_run
from align.checkpoint.resume import Origin
from align.config.experiment import Experiment, examine
from align.config.recipe_file import ConfigError
from align.result import report
from align.run.log import question
from align.run.processes import make_accelerator, set_threads
from align.run.setup import load
from align.run.terminal import quiet, stage
from align.system.clock import Clock
from align.system.text import for_terminal


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation measured."""

    metrics: dict[str, float]  # `reward` with `reward_low` and `reward_high`, `rewards/NAME`, `pass@1`, ...
    samples: list[dict]  # greedy answers: prompt, response, reward, and {name: value} of each reward


def read_recipe(path: Path, adapter: str | None, overrides: Iterable[str]) -> Experiment:
    """Read a recipe for its evaluation: nothing is pushed, resumed or tracked. `adapter`, a folder or a hub name, takes
    the place of the recipe's own. Problems are noted in it, as `examine` does. Raises `ConfigError`."""
    alone = ["hub=null", "run.resume=null", "run.trackers=[]"]
    if adapter is not None:
        alone.append(f"model.adapter={{from: {json.dumps(adapter, ensure_ascii=False)}}}")
    return examine(path, [*overrides, *alone])


def evaluate(experiment: Experiment) -> Evaluated:
    """Evaluate what is held out, in this process or together with those of a launcher. Collective.

    Raises what a training run raises, and `ConfigError` where nothing is held out.
    """
    quiet()
    set_threads()
    with tempfile.TemporaryDirectory() as folder:  # the run of the recipe stays as it is
        if experiment.recipe.run:
            run = experiment.recipe.run.model_copy(update={"out": folder})
            experiment = replace(experiment, recipe=experiment.recipe.model_copy(update={"run": run}))
        accelerator = make_accelerator(experiment)
        with stage("check"):
            checked = check_run(experiment, accelerator)
        if not any(source.held_out for source in checked.sources.values()):
            what = "nothing is held out; write data.holdout or data.eval_prompts"
            raise ConfigError([experiment.file.problem(("data",), what)])
        loaded = load(checked, Origin(), accelerator)
        if loaded.sampler:
            loaded.sampler.sync(loaded.learner, Clock())
        with stage("evaluation"):
            metrics, greedy = loaded.evaluation.run()
        loaded.close()
        accelerator.end_training()
    samples = [
        {"prompt": question(one), "response": one.text, "reward": one.reward, "rewards": one.rewards} for one in greedy
    ]
    return Evaluated({name.removeprefix("eval/"): value for name, value in metrics.items()}, samples)


def show(found: Evaluated, samples: int = 3) -> Group:
    """A table of all measures, with their 95% intervals where they have one, and the first samples."""
    measured, table = found.metrics, Table("measure", "value", caption="mean over prompts [95% interval]")
    ends = {f"{name}{end}" for name in measured for end in ("_low", "_high")}
    for name in (name for name in measured if name not in ends):
        bounds = [measured[f"{name}{end}"] for end in ("_low", "_high") if f"{name}{end}" in measured]
        value = report.estimate(measured[name], *bounds) if bounds else report.short(measured[name])
        table.add_row(Text(for_terminal(name)), Text(value))
    panels = [
        {label: sample[label] for label in ("prompt", "response", "reward")} for sample in found.samples[:samples]
    ]
    return Group(table, *map(report.panel, panels))
