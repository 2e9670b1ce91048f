"""What a resumed run keeps of the lines that a killed one wrote."""

import json

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
