"""Setting a run up: a launcher without DeepSpeed is refused; rows are padded where a model cannot be packed."""

from types import SimpleNamespace

import pytest
from support.networks import model
from support.paths import ROOT
from torch.utils import cpp_extension

from align.config.experiment import load_experiment
from align.config.recipe_file import ConfigError
from align.model import layouts
from align.model.policy import Policy
from align.run import setup
from align.run.processes import make_accelerator
from align.run.setup import check_packing
from align.system.baton import Baton


def test_a_launcher_without_deepspeed_is_told_what_to_write(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    with pytest.raises(ConfigError) as raised:
        make_accelerator(None)
    (problem,) = raised.value.problems
    assert "accelerate launch --config_file launch/cpu_zero2.yaml" in problem and "\n" not in problem


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


def test_extensions_are_built_under_a_lock_that_ends_with_its_owner(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(cpp_extension, "FileBaton", cpp_extension.FileBaton)
    monkeypatch.setattr(setup, "Accelerator", lambda **_: cpp_extension.FileBaton)  # DeepSpeed builds here
    assert make_accelerator(load_experiment(ROOT / "recipes/dpo_reviews.yaml")) is Baton


@pytest.mark.parametrize(
    "have, told", [(1, "8 processes on a machine with 1 GPU; launch with --num_processes 1"), (6, "6 GPUs")]
)
def test_more_processes_than_gpus_are_refused_before_they_join(monkeypatch, have, told):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr("align.run.setup.gpus", lambda: have)
    with pytest.raises(ConfigError, match=told):
        make_accelerator(None)
