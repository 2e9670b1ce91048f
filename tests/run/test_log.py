"""The log of a run: what a resumed one keeps of the lines that a killed one wrote."""

import json
from types import SimpleNamespace

import pytest
from accelerate import Accelerator

from align.run.log import RunLog


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
