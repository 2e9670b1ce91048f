"""What of a run is read: its steps, its recipe, and files that lack something."""

import shutil

import pytest

from align.commands.credit import credit
from align.config.experiment import load_experiment
from align.config.rules import REPLAY
from align.result import samples
from align.result.samples import ReplayError
from align.xray import read
from align.xray.read import look, spread


def test_steps_are_chosen_or_spread(runs, tmp_path):
    folder, _ = runs["several"]
    record = folder / "samples.jsonl"
    assert [b.step for b in look(folder).batches] == [1, 2]
    assert [b.step for b in look(folder, range(2, 3)).batches] == [2]
    assert spread(record, 10**9) == (None, [])
    line = b'{"version": 1, "step": %d, "group": 0, "response_ids": []}\n'
    (tmp_path / "long.jsonl").write_bytes(b"".join(line % step for step in range(1, 101)))
    size = (tmp_path / "long.jsonl").stat().st_size
    chosen, notes = spread(tmp_path / "long.jsonl", size // 10 + 1)
    assert len(chosen) == 10 and chosen[0] == 1 and chosen[-1] == 100 and "10 of 100 steps" in notes[0]
    assert spread(tmp_path / "long.jsonl", 1)[0] == [1, 100]


def divide(folder, tmp_path):
    """The run with a part for its first step."""
    copied = tmp_path / "parts"
    shutil.copytree(folder, copied)
    lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    first = [line for line in lines if '"step": 1,' in line]
    (copied / "samples.00001.jsonl").write_text("".join(first))
    (copied / "samples.jsonl").write_text("".join(lines[len(first) :]))
    return copied


def test_the_parts_of_a_record_are_read_as_one_file(runs, tmp_path):
    folder, experiment = runs["several"]
    parts = divide(folder, tmp_path)
    assert [b.step for b in look(parts).batches] == [1, 2]
    assert list(samples.read(parts / "samples.jsonl").values()) == list(samples.read(folder / "samples.jsonl").values())
    assert credit(experiment, parts / "samples.jsonl") == credit(experiment, folder / "samples.jsonl")
    places = [*samples.read(parts / "samples.jsonl")]
    assert places[0] == f"{parts}/samples.00001.jsonl:1" and places[-1].startswith(f"{parts}/samples.jsonl:")
    assert {rollout.step for rollout in samples.read(parts / "samples.00001.jsonl").values()} == {1}
    assert samples.steps_of(parts / "samples.jsonl") == [1, 2] and [b.step for b in look(parts, [1]).batches] == [1]
    (parts / "samples.jsonl").unlink()  # killed just before the next one began
    assert [b.step for b in look(parts).batches] == [1]
    (parts / "samples.00001.jsonl").write_text("damaged\n")
    (parts / "samples.00002.jsonl").write_text((folder / "samples.jsonl").read_text().splitlines()[-1] + "\n")
    with pytest.raises(ReplayError, match="samples.00001.jsonl:1"):
        look(parts)


def test_what_the_other_recipe_lacks_is_said_by_name(runs):
    d3s = load_experiment(read.Path(__file__).parents[2] / "recipes/d3s_chain_sum.yaml", (), REPLAY)
    with pytest.raises(ReplayError, match="--against: .*entropy: missing, and top_tokens needs it"):
        look(runs["several"][0], against=d3s)


def test_a_run_without_a_record_has_its_metrics_and_says_why(runs, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    found = look(tmp_path)
    assert found.batches == [] and [row["step"] for row in found.metrics] == [1] and "run.samples" in found.notes[0]


def test_a_batch_of_which_a_part_was_recorded_says_so(runs, tmp_path):
    whole, experiment = runs["composed"]
    lines = (whole / "samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "samples.jsonl").write_text("".join(lines[8:]))
    said = f"Not all is here: step 1: {len(lines) // 2 - 8} of {len(lines) // 2} responses of the batch are here"
    assert [note for note in look(tmp_path, own=experiment).notes if note.startswith(said)]
    assert not any("of the batch are here" in note for note in look(whole, own=experiment).notes)


def test_lines_without_decisions_say_so(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"group": 0, "response_ids": [1], "reward": 1.0}\n')
    found = look(tmp_path / "mine.jsonl")
    assert "--against" in found.notes[0] and not found.batches[0].credits


def test_a_line_that_is_wrong_is_named(runs, tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"group": 0}\n')
    with pytest.raises(ReplayError, match="samples.jsonl:1: response_ids"):
        look(tmp_path)
