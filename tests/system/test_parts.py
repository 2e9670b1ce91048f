"""Files of lines in parts: in order, cut anywhere, and whole whenever the process that writes them is killed."""

import json
import os
import random
import time
from pathlib import Path

import pytest

from align.system import files
from align.system.parts import cut, lines, parts, turn, with_steps

LIMIT = 200


def line(step, number=0):
    return json.dumps({"step": step, "text": "x" * (20 + 7 * (step % 5)), "number": number}) + "\n"


def step_of(text):
    try:
        return json.loads(text)["step"]
    except ValueError:
        return None


def write(path, steps):
    """Two lines a step, as a run writes them."""
    for step in steps:
        turn(path, LIMIT)
        with path.open("a") as file:
            file.writelines(line(step, number) for number in range(2))


def whole(path):
    return "".join(part.read_text() for part in parts(path))


def state(path):
    return {part.name: part.read_text() for part in parts(path)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "samples.jsonl"


def test_a_small_file_stays_one(path):
    write(path, [1, 2])
    assert [part.name for part in parts(path)] == ["samples.jsonl"] and whole(path).count("\n") == 4


def test_parts_are_divided_at_steps_and_read_in_order(path):
    write(path, range(1, 41))
    names = [part.name for part in parts(path)]
    assert names == [f"samples.{i:05}.jsonl" for i in range(1, len(names))] + ["samples.jsonl"] and len(names) > 5
    assert whole(path) == "".join(line(step, number) for step in range(1, 41) for number in range(2))
    firsts = [step_of(part.read_text().splitlines()[0]) for part in parts(path)]
    assert all(len(part.read_text().splitlines()) % 2 == 0 for part in parts(path)) and firsts == sorted(set(firsts))
    assert [place for place, _ in lines(parts(path))][:2] == [f"{parts(path)[0]}:1", f"{parts(path)[0]}:2"]


def test_more_parts_than_digits_and_names_that_are_none(path):
    for name in (
        "samples.99999.jsonl",
        "samples.100000.jsonl",
        "samples.1.jsonl",
        "samples.00001.txt",
        "samplesx.jsonl",
    ):
        path.with_name(name).write_text(line(1))
    write(path, [2])
    assert [part.name for part in parts(path)] == ["samples.99999.jsonl", "samples.100000.jsonl", "samples.jsonl"]
    turn(path, 1)
    assert [part.name for part in parts(path)][-1] == "samples.100001.jsonl"


def test_older_parts_may_be_moved_away(path):
    write(path, range(1, 21))
    for part in parts(path)[:2]:
        part.unlink()
    left = [part.name for part in parts(path)]
    write(path, range(21, 41))
    assert left[:-1] == [part.name for part in parts(path)][: len(left) - 1] and left[0] == "samples.00003.jsonl"


def test_only_parts_with_the_steps_are_read(path):
    write(path, range(1, 41))
    for steps in ([1], [40], [20], range(10, 13), [7, 33], [99]):
        chosen = with_steps(path, steps, step_of)
        found = [step for _, text in lines(chosen) if (step := step_of(text)) in steps]
        assert found == [step for step in steps for _ in range(2) if step <= 40] and len(chosen) <= 5


@pytest.mark.parametrize("start", range(13))
def test_a_cut_leaves_what_a_run_up_to_there_would_have(path, tmp_path, start):
    other = tmp_path / "other" / path.name
    other.parent.mkdir()
    write(other, range(1, start + 1))
    write(path, range(1, 13))
    with path.open("a") as file:
        file.write('{"step": 13, "te')
    cut(path, start, step_of)
    assert state(path) == (state(other) or {path.name: ""})
    for one in (path, other):
        write(one, range(start + 1, 20))
    assert state(path) == state(other)


def test_a_cut_reads_no_part_that_goes(path, monkeypatch):
    write(path, range(1, 41))
    read, last = [], {}
    for part in parts(path):
        last[part.name] = step_of(part.read_text().splitlines()[0])
    monkeypatch.setattr(files, "backwards", lambda part, own=files.backwards: read.append(part.name) or own(part))
    cut(path, 5, step_of)
    assert len(read) == 1 and last[read[0]] <= 5


def killed(step):
    """Run a step in a copy of this process; its exit code."""
    copy = os.fork()
    if copy == 0:
        try:
            step()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])


@pytest.mark.parametrize("call", ["rename", "unlink", "truncate"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_kill_in_the_middle_of_turning_or_cutting(path, tmp_path, call, before, number):
    """At the n-th rename, removal or cut, before it or behind it; then the run goes on from step 9."""
    expected = tmp_path / "other" / path.name
    expected.parent.mkdir()
    write(expected, range(1, 31))
    place = os if call == "truncate" else Path
    own, calls = getattr(place, call), []

    def dying(*arguments):
        calls.append(1)
        if len(calls) == number and before:
            os._exit(9)
        own(*arguments)
        if len(calls) == number:
            os._exit(9)

    def run():
        setattr(place, call, dying)
        write(path, range(1, 21))
        cut(path, 9, step_of)

    code = killed(run)
    assert code == (9 if number == 1 or call != "truncate" else 0)
    cut(path, 9, step_of)
    assert whole(path).count("\n") == 18 or code == 9
    done = max((step_of(text) for _, text in lines(parts(path))), default=0)
    write(path, range(done + 1, 31))
    assert state(path) == state(expected)


def test_kills_at_any_moment(path, tmp_path):
    """With SIGKILL, while it writes, turns and cuts."""
    expected, draw, start = tmp_path / "other" / path.name, random.Random(0), 0
    expected.parent.mkdir()
    write(expected, range(1, 61))
    for _ in range(15):
        copy = os.fork()
        if copy == 0:
            try:
                cut(path, start, step_of)
                for step in range(start + 1, 60):
                    write(path, [step])
            finally:
                os._exit(0)
        time.sleep(draw.uniform(0, 0.004))
        os.kill(copy, 9)
        os.waitpid(copy, 0)
        there = [step for _, text in lines(parts(path)) if (step := step_of(text)) is not None]
        assert there == sorted(there)
        start = draw.randint(0, max([s for s in set(there) if there.count(s) == 2], default=0))
    cut(path, start, step_of)
    write(path, range(start + 1, 61))
    assert state(path) == state(expected)
