"""Setting a run up: rows are padded where a model cannot be packed."""

from types import SimpleNamespace

import pytest
from support.networks import model
from support.paths import ROOT

from align.config.experiment import load_experiment
from align.config.recipe_file import ConfigError
from align.model import layouts
from align.model.policy import Policy
from align.run.setup import check_packing


@pytest.mark.parametrize("asked", [None, "shared_prefix"])
def test_rows_are_padded_where_one_of_the_models_cannot_be_packed(asked):
    fine, other = (Policy(model(kind), 1.0) for kind in ("llama", "nemotron"))
    said = []
    learner = SimpleNamespace(
        engine=fine,
        frozen={"guide": other},
        layout=layouts.shared_prefix,
        accelerator=SimpleNamespace(print=said.append),
    )
    experiment = load_experiment(ROOT / "recipes/dpo_reviews.yaml")
    if asked:
        with pytest.raises(ConfigError, match="layout.*write padded"):
            check_packing(experiment, asked, learner)
        return
    checked = check_packing(experiment, asked, learner)
    assert learner.layout is layouts.padded and checked.recipe.optim.layout == "padded" and said
    learner.frozen, learner.layout = {}, layouts.shared_prefix
    assert check_packing(experiment, asked, learner) is experiment
