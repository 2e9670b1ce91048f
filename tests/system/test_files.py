"""Files of lines: the end of those that stay, found from the end; those that may be being written."""

import random

import pytest

from align.system import files


@pytest.mark.parametrize("block", [1, 7, 2**20])
def test_lines_backwards(tmp_path, monkeypatch, block):
    monkeypatch.setattr(files, "BLOCK", block)
    path, chance = tmp_path / "lines", random.Random(block)
    for _ in range(300):
        lines = [b"x" * chance.randint(0, 12) + b"\n" for _ in range(chance.randint(0, 6))]
        path.write_bytes(b"".join(lines) + b"half a" * chance.randint(0, 3))
        ends = [len(b"".join(lines[:i])) for i in range(len(lines) + 1)]
        assert list(files.backwards(path)) == list(zip(ends[1:], lines, strict=True))[::-1]


def test_a_last_line_without_its_end_is_left_out_and_a_wrong_one_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    assert files.finished_json_lines(path) == []
    path.write_text('{"step": 1}\n\n{"step": 2}\n{"ste')
    assert files.finished_json_lines(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"ste\n')
    with pytest.raises(ValueError, match="a.jsonl: line 2 is not JSON"):
        files.finished_json_lines(path)
