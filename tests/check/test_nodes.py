"""What the machines of a run must have alike, and what is said of the folders that they share."""

import pytest
from support import tiny_model
from support.tiny_task import RECIPE

from align.check import nodes
from align.check.nodes import Has, check_nodes, differences, has, shared
from align.check.requirements import CheckedRun
from align.config.experiment import load_experiment
from align.config.recipe_file import ConfigError
from align.data.prompts import Prompt, Prompts
from align.system.node import Node

FACTS = {"optim.lr": "0.1", "the version of torch": "2", "model.policy: m/model.safetensors": "9 bytes abc"}


@pytest.mark.parametrize("what", FACTS)
def test_what_is_not_the_same_is_named_with_both_places(what):
    machines = [Has("a (rank 0)", FACTS, {}), Has("b (rank 1)", FACTS, {}), Has("c (rank 2)", FACTS | {what: "x"}, {})]
    assert differences(machines[:2]) == []
    (problem,) = differences(machines)
    assert problem.startswith(f"{what} is {FACTS[what]} on a (rank 0) and x on c (rank 2); every node needs the same")


def test_what_one_machine_lacks_is_named():
    one, other = Has("a", FACTS, {}), Has("b", {}, {})
    assert "optim.lr is 0.1 on a and missing on b" in differences([one, other])[0]
    assert "optim.lr is missing on b and 0.1 on a" in differences([other, one])[0]


def test_one_folder_and_copies_are_told_apart():
    one = Has("a", {}, {"model.policy m": (1, 2), "data.prompts p": (3,)})
    other = Has("b", {}, {"model.policy m": (1, 2), "data.prompts p": (4,)})
    assert shared([one, other]) == [
        "model.policy m: shared by all nodes",
        "data.prompts p: a copy on each node, of the same content",
    ]


@pytest.fixture
def checked(tmp_path):
    """A run that has passed its check."""
    model = tiny_model.save_model(tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=model, out=tmp_path / "run", adapter=""))
    rows = Prompts([Prompt([1], "one", "one", {})], [], 1)

    def make():
        experiment = load_experiment(tmp_path / "recipe.yaml")
        return CheckedRun(experiment, str(model), None, {"data": rows}, {}, [0], None, None, Node())

    return make


def test_a_byte_of_a_model_and_a_row_of_the_data_are_seen(checked, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    before = has(checked())
    assert differences([before, has(checked())]) == []
    weights = tmp_path / "model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "model.safetensors is" in differences([before, has(checked())])[0]
    other = CheckedRun(**{**vars(checked()), "sources": {"data": Prompts([Prompt([2], "two", "two", {})], [], 1)}})
    assert any(what.startswith("data: the rows of data is") for what in differences([before, has(other)]))


def test_it_is_collective_and_raises_on_all(checked, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert check_nodes(checked()) == []  # one machine
    monkeypatch.setattr(nodes, "machines", lambda: 2)
    mine = has(checked())
    monkeypatch.setattr(nodes, "gather_object", lambda found: [*found, mine])
    lines = check_nodes(checked())
    assert lines[0].startswith("2 nodes: ") and "run: shared by all nodes" in lines[1] and len(lines) == 3
    other = Has("b (rank 1)", {**mine.facts, "optim.lr": "3"}, {})
    monkeypatch.setattr(nodes, "gather_object", lambda found: [*found, other])
    with pytest.raises(ConfigError, match="optim.lr is 0.01 on .* and 3 on b"):
        check_nodes(checked())
