"""Runs without a model that are recorded, and what `align credit` must make of the record: what the run had."""

import json

import numpy as np
import pytest

from align.commands.credit import credit
from align.config.experiment import load_experiment
from align.config.rules import REPLAY
from align.run.samples import Record
from support import recorded
from support.recorded import collected, collected_pairs


def experiment_of(recipe, *overrides):
    return load_experiment(recipe, overrides, REPLAY)


def ran(path, experiment, record=None, count=2, first=1, unrated=()):
    """[(step, batches, outputs)] of a run of these objectives, recorded from the step `first` on; a source of rollouts
    or pairs for each that they name."""
    out, record, sources = [], record or Record(), {}
    recipe = experiment.recipe
    given = ("old_logprob",) if recipe.optim.updates_per_step == 1 else ()  # as the loop has it
    for objective in experiment.objectives:
        sources.setdefault(objective.data, []).append(objective)
    path.write_text("")
    for step in range(1, count + 1):
        batches, outputs = [], []
        for number, objectives in enumerate(sources.values()):
            seed, progress = 10 * step + number, (step - 1) / 7
            pairs = recipe.sources()[objectives[0].data or "data"].pairs
            size = max(8, recipe.sampling.group_size)  # as many as its transforms need
            found = collected_pairs(seed, progress) if pairs else collected(seed, progress, unrated, size=size)
            batches.append(recorded.step(objectives, found, seed, recipe.sampling.old_logprob, given))
            outputs += recorded.outputs(batches[-1], number, seed)
        if step >= first:
            out.append((step, batches, outputs))
            with path.open("a") as file:
                file.writelines(f"{line}\n" for line in record.lines(*out[-1]))
    return out


def of_the_run(steps):
    """[(kept, advantage, weight) of each objective] of each response, in the order of the lines."""
    for _, batches, _ in steps:
        for source in batches:
            row = 0
            for rollout in source.collected.rollouts or [None] * len(source.collected.batch.kept):
                if rollout and rollout.reward is None:
                    yield None
                    continue
                n = int(source.collected.batch.size[row])
                yield [
                    (
                        bool(c.batch.kept[row]),
                        None if c.batch.advantage is None else c.batch.advantage[row, :n].tolist(),
                        c.token_weight[row, :n].tolist(),
                    )
                    for c in source.credited
                ]
                row += 1


def entries_of(line):
    return line.get("objectives", [line])


def assert_replays(experiment, path, steps):
    """`align credit` gives each response's credit, each batch's counts and its loss as the run had them."""
    lines = credit(experiment, path)
    runs = list(of_the_run(steps))
    for line, run in zip(lines, runs, strict=False):
        for entry, had in zip(entries_of(line), run or (), strict=True) if run else ():
            kept, advantage, weight = had
            assert entry["kept"] is kept and entry["weight"] == weight
            if advantage is not None:
                assert entry["advantage"] == advantage
        assert run or not any(entry["kept"] for entry in entries_of(line))
    summaries = lines[len(runs) :]
    sources = [(step, source, outputs) for step, batches, outputs in steps for source in batches]
    assert len(summaries) == len(sources)
    for summary, (step, source, outputs) in zip(summaries, sources, strict=True):
        assert summary["step"] == step
        mine = [o for o in outputs if o.source == [s is source for s in steps[step - 1][1]].index(True)]
        assert summary["loss"] == pytest.approx(recorded.loss_of(source, mine), rel=1e-6, abs=1e-7)
        for entry, credited in zip(entries_of(summary), source.credited, strict=True):
            taken = entry["signal"]["taken"]
            assert entry["signal"]["generated"] == credited.signal.generated
            assert {name: taken[name] for name in credited.signal.removed_by} == credited.signal.removed_by


def same(one, two):
    """Whether numbers are the same float32s; what is None in the record, for others put the token in, is 0."""
    return np.array_equal(np.float32(one), np.float32([value or 0.0 for value in two]))


def assert_record_is_the_run_s(folder, *overrides):
    """`align credit` makes of the record of a run what the run had: credit, weight and counts to the last digit, and
    its loss, which was added in the order of micro-batches. Returns the lines of the record."""
    experiment = experiment_of(folder / "config.yaml", *overrides)
    rows = [json.loads(line) for line in (folder / "samples.jsonl").open()]
    lines = credit(experiment, folder / "samples.jsonl")
    for row, line in zip(rows, lines, strict=False):
        if "kept" not in row:  # no reward, no decision
            assert not any(entry["kept"] for entry in entries_of(line))
            continue
        assert [entry["kept"] for entry in entries_of(line)] == row["kept"]
        told = zip(entries_of(line), row["advantage"], row["objectives"], strict=True)
        for entry, advantage, decided in told:  # nine digits are one float32
            assert same(entry["weight"], decided["weight"])
            assert advantage is None or same(entry["advantage"], advantage)
    metrics = {row["step"]: row for row in map(json.loads, (folder / "metrics.jsonl").open()) if "loss" in row}
    losses = dict.fromkeys(metrics, 0.0)
    for summary in lines[len(rows) :]:
        losses[summary["step"]] += summary["loss"]
        names = [o.name for o in experiment.objectives if o.data in (None, summary["source"])]
        for name, entry in zip(names, entries_of(summary), strict=True):
            prefix = "signal/" if len(experiment.objectives) == 1 else f"signal/{name}/"
            row = metrics[summary["step"]]
            said = {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}
            taken = {f"taken/{key}": value for key, value in entry["signal"]["taken"].items()}
            before = sum(said[f"taken/{why}"] for why in ("dynamic_sampling", "unrated", "failed"))
            assert said["generated"] == entry["signal"]["generated"] + before
            assert {key: said[key] for key in taken if key in said} == {key: taken[key] for key in taken if key in said}
    if experiment.recipe.optim.updates_per_step == 1:  # else the metrics are those of the last update
        assert losses == {step: pytest.approx(row["loss"], rel=1e-4, abs=2e-6) for step, row in metrics.items()}
    return rows
