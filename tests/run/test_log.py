"""The log of a run: the rows of its samples; what a resumed one keeps of the lines that a killed one wrote."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import ANY

import pytest
from accelerate import Accelerator
from support.counting_learner import CountingLearner, annotate
from support.rollouts import WORDS, failing, rollout

from align.credit import assign
from align.objectives import grpo
from align.result.samples import steps_of
from align.rollout import rollouts
from align.rollout.sources import Collected, SourceBatch
from align.run.log import CallbackError, RunLog
from align.run.samples import Record


def write(path, rows, tail=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_up_to_the_start_stay(tmp_path):
    write(tmp_path / "metrics.jsonl", [{"step": 0, "eval/reward": 1}, {"step": 1}, {"step": 2}, {"step": 3}], '{"st')
    write(tmp_path / "samples.jsonl", [{"step": 1}, {"step": 2}, {"step": 2}, {"step": 3}])
    write(tmp_path / "greedy.jsonl", [{"step": 0}, {"step": 3}])
    log = RunLog(tmp_path, Accelerator(cpu=True), 2)
    assert steps(tmp_path / "metrics.jsonl") == [0, 1, 2]
    assert steps(tmp_path / "samples.jsonl") == [1, 2, 2]
    assert steps(tmp_path / "greedy.jsonl") == [0]
    assert log.evaluations() == [{"eval/reward": 1}]


def test_a_first_evaluation_stays_only_where_it_is_whole(tmp_path):
    write(tmp_path / "metrics.jsonl", [], '{"step": 0, "eval/reward": 1}')  # cut before the end of its line
    write(tmp_path / "greedy.jsonl", [{"step": 0}])
    log = RunLog(tmp_path, Accelerator(cpu=True), 0)
    assert log.evaluations() == [] and steps(tmp_path / "greedy.jsonl") == []


@pytest.fixture
def main_process():
    nothing = {"wait_for_everyone": lambda: None, "log": lambda *_, **__: None}
    return SimpleNamespace(is_main_process=True, **nothing)


def test_a_killed_run_s_half_line_does_not_stop_a_resume(tmp_path, main_process):
    rows = [{"step": 0, "eval/reward": 0.1}, {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}]
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 3, "lo')
    (tmp_path / "samples.jsonl").write_text('{"step": 1}\n{"step": 2, "response')
    log = RunLog(tmp_path, main_process, start=1)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines[:2])
    assert (tmp_path / "samples.jsonl").read_text() == '{"step": 1}\n'
    assert log.evaluations() == [{"eval/reward": 0.1}]


def test_a_fresh_run_starts_an_empty_log(tmp_path, main_process):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n')
    assert RunLog(tmp_path, main_process, start=0).evaluations() == []
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_only_responses_with_a_reward_have_credit_in_the_samples(tmp_path, main_process):
    scored = [rollout(0, 0, 1.0, 2), rollout(0, 1, None, 3), failing(0, 2, 4), rollout(0, 3, 0.0, 5)]
    batch = rollouts.to_batch([r for r in scored if r.reward is not None], WORDS)
    credited = assign(grpo(), batch, annotate(CountingLearner(), "sampler"))
    source = SourceBatch(Collected(batch, scored, scored), [credited])
    RunLog(tmp_path, main_process, start=0).step(1, {"loss": 0.0}, [source, source])
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["group"] for row in rows] == ["1-0"] * 4 + ["1-1-0"] * 4  # those of a second source apart
    assert [row.get("failed") for row in rows[:4]] == [None, None, {"r": "took too long"}, None]
    assert ["kept" in row for row in rows[:4]] == [True, False, False, True]
    assert [row["batch_rows"] for row in rows] == [4] * 8 and "token_text" in rows[0]
    assert rows[0]["advantage"] == [[1.0] * 2] and rows[3]["advantage"] == [[-1.0] * 5]


def bytes_read() -> int:
    """Bytes that this process has read from files so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_resume_reads_the_end_of_the_samples_only(tmp_path, main_process):
    """What is before the last line that stays is not read, not even where it is damaged."""
    path, before = tmp_path / "samples.jsonl", '{"step": 1, "response": "' + "x" * 2**20 + '"}\n'
    kept = before * 30 + "not JSON\n" + '{"step": 2}\n' + '{"step": 2, "response": "' + "x" * 3 * 2**20 + '"}\n'
    path.write_text(kept + '{"step": 3}\n\0\0\n{"step": 4, "resp')
    start = bytes_read()
    RunLog(tmp_path, main_process, start=2)
    assert bytes_read() - start < 10 * 2**20 and path.stat().st_size == len(kept)
    assert path.read_text() == kept
    RunLog(tmp_path, main_process, start=0)
    assert path.read_text() == ""


def test_a_long_record_is_divided_and_a_resumed_run_cuts_its_parts(tmp_path, main_process):
    """After the cut the files are those of a run up to there; what is before the last part is not read."""

    class Lines(Record):
        def lines(self, step, batches, outputs):
            return [json.dumps({"version": 1, "step": step, "text": "x" * 400})] * 3

    def log(start, folder=tmp_path):
        return RunLog(folder, main_process, start, record=Lines("none", part_bytes=3000))

    def run(found, *steps):
        for step in steps:
            found.step(step, {"loss": step / 2}, [])
        found.to_disk()

    def there(folder=tmp_path):
        return {path.name: path.read_text() for path in folder.glob("samples*")}

    run(log(0), *range(1, 12))
    assert [*sorted(there())] == [*(f"samples.0000{i}.jsonl" for i in (1, 2, 3)), "samples.jsonl"]
    assert steps_of(tmp_path / "samples.jsonl") == [*range(1, 12)]
    (tmp_path / "other").mkdir()
    run(log(0, tmp_path / "other"), *range(1, 6))
    (tmp_path / "samples.00001.jsonl").chmod(0)
    again = log(5)
    (tmp_path / "samples.00001.jsonl").chmod(0o600)
    assert there() == there(tmp_path / "other")
    run(again, *range(6, 12))
    assert steps_of(tmp_path / "samples.jsonl") == [*range(1, 12)] and len(there()) == 4


def test_the_greedy_answers_are_those_of_the_first_and_the_last_evaluation(tmp_path, main_process):
    """Of a long file only these are read."""
    rows = [{"step": step, "n": n} for step in (0, 5, 9) for n in range(3)]
    write(tmp_path / "metrics.jsonl", [{"step": step, "eval/reward": 1} for step in (0, 5, 9)])
    write(tmp_path / "greedy.jsonl", rows)
    log = RunLog(tmp_path, main_process, 9)
    assert log.greedy_samples() == (rows[:3], rows[6:]) and log.evaluated_steps() == [0, 5, 9]
    assert RunLog(tmp_path, main_process, 8).greedy_samples() == (rows[:3], rows[3:6])
    write(tmp_path / "greedy.jsonl", rows[:3])
    assert log.greedy_samples() == (rows[:3], rows[:3])


def test_a_memory_goes_on_in_a_resumed_run_where_the_step_before_it_is_there_as_a_whole(tmp_path, main_process):
    """Of each source; not where `run.samples` kept a part of it, or nothing, while that step ran."""

    def line(step: int, source: str, batch_rows: int, prompt: str = "p", **decided) -> str:
        head = {"version": 1, "step": step, "source": source, "group": "1-0", "progress": 0.5}
        return json.dumps({**head, "batch_rows": batch_rows, "prompt": prompt, **decided})

    whole = [line(2, 'a"\xe9', 2), line(2, 'a"\xe9', 2, objectives=[{}])]
    part = [line(2, "b", 3, objectives=[{}])] * 2
    undecided = [line(2, "c", 2, '"objectives": [')] * 2
    before = [line(1, "d", 1, objectives=[{}])]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(f"{line}\n" for line in [*before, *whole, *part, *undecided]))
    assert RunLog(tmp_path, main_process, start=2).record.last == {'a"\xe9': 2}
    assert RunLog(tmp_path, main_process, start=3).record.last == {}
    assert RunLog(tmp_path, main_process, start=1).record.last == {"d": 1}


def test_callbacks_see_steps_and_evaluations(tmp_path, main_process):
    seen = []
    log = RunLog(tmp_path, main_process, 0, {"mine:f": lambda step, metrics: seen.append((step, metrics))})
    log.step(1, {"loss": 0.5}, [])
    log.evaluation(1, {"eval/reward": 0.25}, [])
    assert seen == [(1, {"loss": 0.5, "seconds/record": ANY}), (1, {"eval/reward": 0.25})]
    assert seen[0][1]["seconds/record"] > 0


def leave(step, metrics):
    raise SystemExit(0)


@pytest.mark.parametrize("function, why", [(lambda step, metrics: {}["x"], "KeyError"), (leave, "sys.exit")])
def test_a_callback_that_raises_is_named(tmp_path, main_process, function, why):
    log = RunLog(tmp_path, main_process, 0, {"mine:f": function})
    with pytest.raises(CallbackError, match=rf"^run.callbacks: mine:f .*{why}.*--resume") as raised:
        log.step(3, {"loss": 0.5}, [])
    assert "after step 3" in str(raised.value) and "test_log.py:" in str(raised.value)
    assert log.steps() == [{"step": 3, "loss": 0.5, "seconds/record": ANY}]  # it was written before


def test_trackers_that_show_pages_get_the_page(tmp_path, main_process, monkeypatch):
    told = []

    class Tracker(SimpleNamespace):
        def log(self, values, step):
            told.append((self.name, values, step))

    def html(data, inject=True, data_is_not_path=False):  # both have these
        assert not inject  # a stylesheet of theirs would be one that the page's policy refuses
        return f"page {data}"

    for name in ("trackio", "wandb"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(Html=html))
    main_process.trackers = [Tracker(name=name) for name in ("tensorboard", "trackio", "wandb")]
    RunLog(tmp_path, main_process, 0).page(tmp_path / "xray.html", 7)
    shown = {"xray": f"page {tmp_path / 'xray.html'}"}
    assert told == [("trackio", shown, 7), ("wandb", shown, 7)]
