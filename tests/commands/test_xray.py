"""`python -m align xray`: the page, the terminal, and mistakes on the command line."""

import pytest
from support import run_folder
from typer.testing import CliRunner

from align.__main__ import app
from align.commands.xray import steps
from align.result.samples import ReplayError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("xray") / "run"
    run_folder.make(made)
    return made


def invoke(*arguments):
    return CliRunner().invoke(app, ["xray", *map(str, arguments)])


def test_a_page_of_a_run_with_what_its_loss_knows(folder, tmp_path):
    result = invoke(folder, "-o", tmp_path / "page.html")
    assert result.exit_code == 0 and "page.html" in result.output, result.output
    text = (tmp_path / "page.html").read_text()
    assert text.startswith("<!doctype html>") and "default-src" in text and "What only" not in text


def test_the_terminal(folder, tmp_path):
    result = invoke(folder, "--step", "2", "--text", "--against", run_folder.ROOT / "recipes/ktae_chain_sum.yaml")
    assert result.exit_code == 0, result.output
    assert "step 2" in result.output and "step 1" not in result.output and "sign flips" in result.output
    assert "clipped_surrogate" in result.output


def test_steps():
    assert steps(None) is None and list(steps("3")) == [3] and list(steps("3..5")) == [3, 4, 5]
    for wrong in ("x", "5..3", "3..", "-1", "3..4..5"):
        with pytest.raises(ReplayError, match="write 3 or 3..8"):
            steps(wrong)


def test_mistakes_are_told(folder, tmp_path):
    (tmp_path / "recipe.yaml").write_text("objective: {name: gfpoo}\n")
    for arguments, words in (
        ((folder, "--step", "9"), "no rollouts"),
        ((folder, "--step", "2..1"), "--step"),
        ((folder, "--against", tmp_path / "recipe.yaml"), "gfpo"),
        ((folder, "-o", tmp_path / "none/there/page.html/x" / ("y" * 300)), "cannot be written"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 1 and words in result.output, (result.output, result.exception)
