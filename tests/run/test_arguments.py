"""The command line of a training run."""

import pytest

from align.run.arguments import Asked, parse


@pytest.mark.parametrize(
    "words, expected",
    [
        (["r.yaml"], Asked("r.yaml", (), False)),
        (["r.yaml", "a=1", "--resume", "b=2"], Asked("r.yaml", ("a=1", "b=2"), True)),
        (["--resume", "r.yaml", "a.b=[1, 2]"], Asked("r.yaml", ("a.b=[1, 2]",), True)),
    ],
)
def test_words_in_any_order(tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").touch()
    assert parse(words) == expected


def test_what_is_wrong_is_told_once(monkeypatch, capsys):
    assert parse(["r.yaml", "--again"]) == 2
    assert "--again" in capsys.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert parse([]) == 2 and capsys.readouterr().err == ""


def test_a_recipe_that_is_not_there_is_told_before_anything_is_imported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    for word, fix in (("mien.yaml", "did you mean mine.yaml?"), ("other", "align recipes NAME copies one")):
        assert parse([word]) == 2
        assert f"{word}: no such recipe; {fix}" in capsys.readouterr().err
