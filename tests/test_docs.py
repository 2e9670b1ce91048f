"""What the READMEs show works as shown."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from helpers import loss_of, random_batch

from align.config.experiment import load_experiment
from align.config.recipe import Recipe

ROOT = Path(__file__).parents[1]


def blocks(path: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


def test_an_objective_of_your_own(tmp_path, monkeypatch):
    """The example of align/README.md: its code, named by its YAML, without touching `align/`."""
    (tmp_path / "my_objectives.py").write_text(blocks("align/README.md", "python")[0])
    monkeypatch.syspath_prepend(tmp_path)
    recipe = yaml.safe_load((ROOT / "recipes/gfpo_chain_sum.yaml").read_text())
    recipe |= yaml.safe_load(blocks("align/README.md", "yaml")[0])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (objective,) = load_experiment(tmp_path / "recipe.yaml").objectives
    assert objective.name == "positive_only"
    batch, logprob = random_batch(0)
    _, gradient = loss_of(objective, batch, logprob)
    assert gradient.any() and (gradient <= 0).all()  # descent only ever raises log-probabilities
    sys.modules.pop("my_objectives")


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe):
    experiment = load_experiment(recipe)
    names = [objective.name for objective in experiment.objectives]
    assert experiment.recipe.run.out == f"runs/{recipe.stem}"
    assert recipe.stem.startswith(names[0]) or len(experiment.objectives[0].chain) > 2


def test_the_readme_s_recipe_is_valid():
    (text,) = blocks("README.md", "yaml")
    assert set(yaml.safe_load(text)) <= set(Recipe.model_fields)
    Recipe.model_validate(yaml.safe_load(text))


def test_files_named_in_the_architecture_exist_and_all_are_named():
    named = set(re.findall(r"`(\w+\.py)`", (ROOT / "align/README.md").read_text()))
    there = {path.name for path in (ROOT / "align").glob("*.py")} - {"__init__.py"}
    assert there <= named


@pytest.mark.parametrize("path", ["README.md", "align/README.md", "recipes/README.md", "rewards/README.md"])
def test_links_lead_somewhere(path):
    for transform in re.findall(r"\]\(([^)#]+)\)", (ROOT / path).read_text()):
        assert ((ROOT / path).parent / transform).exists(), transform
