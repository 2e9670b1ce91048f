"""`python -m align objectives` shows what the factories are."""

import inspect

import pytest
from typer.testing import CliRunner

from align.__main__ import app
from align.commands.objectives import entry
from align.registry import OBJECTIVES


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_described(name):
    found = entry(name)
    assert found.summary.endswith((".", ":")) or found.summary
    assert "arXiv" in found.paper or "Williams" in found.paper
    assert len(found.limit) > 10
    assert [key.name for key in found.arguments] == list(inspect.signature(OBJECTIVES[name]).parameters)


def test_types_ranges_and_defaults():
    arguments = {key.name: (key.kind, key.default) for key in entry("gfpo").arguments}
    assert arguments["clip_low"] == ("float >= 0 < 1", "0.2")
    assert arguments["metric"] == ("shortest | token_efficiency | module:function", "shortest")
    guide = {key.name: key.kind for key in entry("rto").arguments}
    assert guide["delimiters"] == "list of str" and guide["value_lr"] == "float > 0 | null"
    assert arguments["k"][0].startswith("int >= 2 | {very_hard: int >= 2, ") and arguments["k"][1] == "needed"


def test_the_command_lists_shows_and_corrects(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run = CliRunner().invoke
    everything = run(app, ["objectives"])
    assert everything.exit_code == 0 and all(name in everything.output for name in OBJECTIVES)
    one = run(app, ["objectives", "d3s"])
    assert one.exit_code == 0 and "arXiv 2509.22115" in one.output and "share" in one.output
    wrong = run(app, ["objectives", "d3"])
    assert wrong.exit_code == 1 and "did you mean 'd3s'?" in wrong.output
