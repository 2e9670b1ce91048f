"""Files of lines: the end of those that stay, found from the end; those that may be being written."""

import random

import pytest

from align.system import files


@pytest.mark.parametrize("block", [1, 7, 2**20])
def test_the_end_of_the_last_line_that_is_wanted(tmp_path, monkeypatch, block):
    monkeypatch.setattr(files, "BLOCK", block)
    path, chance = tmp_path / "lines", random.Random(block)
    for _ in range(300):
        lines = ["x" * chance.randint(0, 12) + chance.choice("ab") for _ in range(chance.randint(0, 6))]
        path.write_text("".join(f"{line}\n" for line in lines) + "half a" * chance.randint(0, 3))
        whole = [i for i, line in enumerate(lines) if line.endswith("a")]
        expected = sum(len(line) + 1 for line in lines[: whole[-1] + 1]) if whole else 0
        assert files.end_of(path, lambda line: line.endswith(b"a\n")) == expected


def test_lines_before_the_wanted_one_are_not_looked_at(tmp_path):
    seen = []
    (tmp_path / "lines").write_text("1\n2\n3\n4\n")
    assert files.end_of(tmp_path / "lines", lambda line: seen.append(line) or line == b"3\n") == 6
    assert seen == [b"4\n", b"3\n"]


def test_a_last_line_without_its_end_is_left_out_and_a_wrong_one_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    assert files.finished_json_lines(path) == []
    path.write_text('{"step": 1}\n\n{"step": 2}\n{"ste')
    assert files.finished_json_lines(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"ste\n')
    with pytest.raises(ValueError, match="a.jsonl: line 2 is not JSON"):
        files.finished_json_lines(path)
