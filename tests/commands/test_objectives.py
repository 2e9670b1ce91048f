"""`python -m align objectives` shows what the factories are."""

import inspect
import sys

import pytest
from typer.testing import CliRunner

from align.__main__ import app
from align.commands.objectives import entry, flowing
from align.registry import LOSSES, OBJECTIVES, TRANSFORMS


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


@pytest.mark.parametrize("name", [*TRANSFORMS, *LOSSES])
def test_every_transform_and_loss_is_described(name):
    found = entry(name)
    assert found.summary and found.source.startswith("align/") and "reads" in found.parts
    assert ("counts" in found.parts) == (name in LOSSES)


def test_a_paragraph_flows_on_a_terminal_of_any_width():
    assert flowing("One\ntwo.\n\nThree.\n\nPaper: P.\nLimit: L.") == "One two.\n\nThree.\n\nPaper: P.\nLimit: L."


def test_an_objective_lists_its_chain():
    assert entry("d3s").parts["chain"] == "group_advantage, max_variance_rows, top_tokens"
    assert entry("dpo").parts == {"chain": "none", "losses": "pair_logistic", "reads": "chosen, ref_logprob"}
    assert entry("gfpo").parts["reads"] == "old_logprob, reward"


OWN = """
from align.objectives import Objective, grpo
from align.transforms import Transform

def mine(*, clip_high: float = 0.2, k: int) -> Objective:
    \"\"\"Mine alone.\"\"\"
    return grpo(clip_high=clip_high)

def odd(*, things: dict) -> Transform:
    raise KeyError("always")

def nothing():
    return 3

def misspelt() -> 'Objektive':
    return 3
"""


def test_a_page_of_one_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_methods.py").write_text(OWN)
    run = CliRunner().invoke
    said = run(app, ["objectives", "own_methods:mine"]).output
    for part in ("Mine alone.", "clip_high", "needed", "chain: group_advantage", "source: own_methods.py, line 5"):
        assert part in said
    odd = run(app, ["objectives", "own_methods:odd"])
    assert odd.exit_code == 0 and "things" in odd.output and "chain" not in odd.output
    for name, what in (
        ("nothing", "does not say what it returns; write `-> Objective` behind its arguments"),
        ("misspelt", "annotations that cannot be read: NameError"),
        ("nowhere", "has no attribute 'nowhere'"),
    ):
        wrong = run(app, ["objectives", f"own_methods:{name}"])
        assert wrong.exit_code == 1 and what in wrong.output
    wrong = run(app, ["objectives", "gpfo"])
    assert wrong.exit_code == 1 and "no objective, transform or loss 'gpfo'; did you mean 'gfpo'?" in wrong.output
    del sys.modules["own_methods"]
