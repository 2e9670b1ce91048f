"""`align evaluate`: what it makes of its arguments, and how it shows what a model answered."""

import io

import pytest
import yaml
from rich.console import Console
from support.hostile_text import ESCAPES, acting

from align.commands.evaluate import Evaluated, read_recipe, show


@pytest.mark.parametrize(
    "adapter", ["runs/x/adapter", "a \U0001f600 é", 'a "b" {c}: [d] #e', "a: b", "'", "\\n", "3", "null"]
)
def test_an_adapter_of_any_name_takes_the_place_of_the_recipe_s(tmp_path, adapter):
    recipe = tmp_path / "recipe.yaml"
    content = {
        "model": {"policy": "some/model", "adapter": {"rank": 4}},
        "data": {"prompts": "user/rows"},
        "rewards": {"rewards.length:length_penalty": 1.0},
        "objective": {"name": "gfpo", "k": 2},
        "hub": "user/name",
        "run": {"out": "runs/x", "steps": 1, "resume": "runs/y", "trackers": ["tensorboard"]},
    }
    recipe.write_text(yaml.safe_dump(content))
    read = read_recipe(recipe, adapter, ["hub=other/name", "run.resume=z"]).recipe
    assert read.model.adapter.start == adapter and "rank" not in read.model.adapter.model_fields_set
    assert read.hub is None and read.run.resume is None and not read.run.trackers


@pytest.mark.parametrize("text", ESCAPES.values(), ids=ESCAPES)
def test_answers_do_not_act_on_the_terminal(text):
    file = io.StringIO()
    found = Evaluated({f"rewards/{text}": 0.5}, [{"prompt": text, "response": text, "reward": text}])
    Console(file=file, width=300, force_terminal=False).print(show(found))
    assert not acting(file.getvalue())
