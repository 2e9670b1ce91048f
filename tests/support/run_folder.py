"""The folder of a run that never ran a model: what it recorded, measured and answered, under any recipe."""

import json

import yaml

from align.checkpoint.provenance import resolved
from align.config.experiment import load_experiment
from align.config.rules import REPLAY
from align.run.samples import Record
from support import recorded
from support.paths import ROOT

COMPOSED = ROOT / "recipes/composed_chain_sum.yaml"
TGDPO = ROOT / "recipes/tgdpo_champ.yaml"
SEVERAL = ("objective=null", "objectives=[{name: gfpo, k: 4}, {name: grpo}]")


def make(folder, recipe=COMPOSED, overrides=(), steps=2, unrated=()):
    """Write the folder; the experiment that it is of."""
    folder.mkdir(parents=True, exist_ok=True)
    experiment = load_experiment(recipe, [*overrides, f"run.out={folder}"], REPLAY)
    record, lines = Record(), []
    for step in range(1, steps + 1):
        batches, outputs = [], []
        for number, objectives in enumerate(_by_source(experiment)):
            seed, progress = 10 * step + number, (step - 1) / 7
            pairs = any(o.preference for o in objectives)
            size = {"size": max(8, experiment.recipe.sampling.group_size)}  # as many as its transforms need
            found = (
                recorded.collected_pairs(seed, progress)
                if pairs
                else recorded.collected(seed, progress, unrated, **size)
            )
            batches.append(recorded.step(objectives, found, seed))
            outputs += recorded.outputs(batches[-1], number, seed)
        lines += record.lines(step, batches, outputs)
    (folder / "samples.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved(experiment), sort_keys=False))
    measured = [{"step": s, "loss": 0.1, "reward/mean": s / 10, "response/length": 9.0} for s in range(1, steps + 1)]
    evaluated = [
        {"step": s, "eval/reward": s / 10, "eval/reward_low": s / 10 - 0.1, "eval/reward_high": s / 10 + 0.1}
        for s in (0, steps)
    ]
    greedy = [
        {"step": s, "prompt": prompt, "response": f"answer after {s}", "reward": float(s > 0)}
        for s in (0, steps)
        for prompt in ("1 + 1?", "2 + 2?")
    ]
    for name, rows in (("metrics", [evaluated[0], *measured, evaluated[1]]), ("greedy", greedy)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return experiment


def _by_source(experiment):
    sources = {}
    for objective in experiment.objectives:
        sources.setdefault(objective.data, []).append(objective)
    return list(sources.values())
