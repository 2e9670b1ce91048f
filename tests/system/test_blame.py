"""The line of the user's own file that an error came through, and what becomes of sys.exit."""

import json
import sys

import pytest

from align.system.blame import UserExit, no_exit, user_line


def error_of(step):
    try:
        step()
    except BaseException as error:
        return error


def test_the_innermost_own_line_is_named(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import json\ndef outer(text):\n    return inner(text)\ndef inner(text):\n    return json.loads(text)\n"
    )
    space = {}
    exec(compile(path.read_text(), str(path), "exec"), space)
    assert user_line(error_of(lambda: space["outer"]("{"))) == "mine.py:5"  # and not the line of json


def test_without_an_own_line_nothing_is_named(monkeypatch):
    assert user_line(ValueError()) is None
    assert user_line(error_of(lambda: json.loads("{"))).startswith("test_blame.py:")


def test_code_that_is_installed_is_named_where_it_was_entered():
    import torch  # in site-packages, with this file hidden

    error = error_of(lambda: torch.nn.Linear(2, 2)(torch.ones(3)))
    error.__traceback__ = error.__traceback__.tb_next.tb_next
    assert user_line(error).startswith("module.py:")


@pytest.mark.parametrize("code", [0, None, 3, "good bye"])
def test_an_exit_becomes_an_error(code):
    what = r"data called sys.exit\(.*\) at test_blame.py:\d+; raise an error instead"
    with pytest.raises(UserExit, match=what), no_exit("data"):
        sys.exit(code)
