"""Names of TRL and verl: each that their pages list gets its advice, and no advice names what is not there."""

import re

import pytest
from support.paths import ROOT

from align.config.other_libraries import TRL, TRL_KEYS, VERL, VERL_KEYS, advice
from align.config.problems import paths_in
from align.config.recipe import Recipe
from align.registry import LOSSES, OBJECTIVES, TRANSFORMS

OURS = {*paths_in(Recipe), *(path.rpartition(".")[2] for path in paths_in(Recipe))}


def names(page):
    """The names in the first column of a page's tables that may stand in a configuration."""
    rows = [line.split("|")[1] for line in (ROOT / page).read_text().splitlines() if line.startswith("| `")]
    found = {name for row in rows for name in re.findall(r"`([a-z_][\w.]*)[^`]*`", row)}
    return sorted(found - {"sigmoid", "robust", "ipo", "sft", "dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo"})


SAME = {"luspo", "vespo", "actor.policy_loss.loss_mode", "ref", "algorithm.rollout_correction", "algorithm.gamma"}
OTHERS = {"algorithm.lam", "algorithm.filter_groups.max_num_gen_batches", "critic.cliprange_value", "critic.optim.lr"}


@pytest.mark.parametrize("page, name", [(page, name) for page in (TRL, VERL) for name in names(page)])
def test_every_name_of_the_pages_gets_its_advice(page, name):
    known = name.rpartition(".")[2] in OURS or name in SAME | OTHERS
    assert known or advice(name), name


@pytest.mark.parametrize("said", sorted({*TRL_KEYS.values(), *VERL_KEYS.values()}))
def test_advice_names_keys_that_are_there(said):
    for path in re.findall(r"\b(?:model|data|sampling|optim|eval|run|hub)\.\w+(?:\.\w+)*", said):
        assert path in paths_in(Recipe), path
    for piece in re.findall(r"\{(\w+): \{", said):
        assert piece in {**TRANSFORMS, **LOSSES, **OBJECTIVES}, piece


@pytest.mark.parametrize("prefix", ["", "actor_rollout_ref."])
def test_the_last_parts_of_a_key_decide(prefix):
    assert advice(f"{prefix}rollout.n") == f"write sampling.group_size ({VERL})"
    assert advice(f"{prefix}model.path") == f"write model.policy ({VERL})"
    assert advice("nothing.of.the.kind") is None


@pytest.mark.parametrize("key", ["model.adapter.lora_dropout", "model.adapter.dropout", "model.adapter.use_dora"])
def test_what_is_refused_says_why(key):
    assert advice(key).startswith("there is no key for it here: ")


@pytest.mark.parametrize("key", ["wandb_project", "load_best_model_at_end"])
def test_what_a_trainer_has_and_a_recipe_has_not_is_told_with_the_page(key):
    assert advice(f"run.{key}") == f"there is no key for it here ({TRL})"
