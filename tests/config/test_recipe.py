"""The sections of a recipe and their keys."""

import pytest
from pydantic import BaseModel
from support.recipes import rewards

from align.config.hub_name import check_repo_name
from align.config.problems import models_in
from align.config.recipe import Recipe, Reward


def test_an_infinite_norm_does_not_clip(recipe):
    assert recipe("optim: {max_grad_norm: .inf}\n").recipe.optim.max_grad_norm == float("inf")


@pytest.mark.parametrize("hub, repo, private", [("user/name", "user/name", None), ("{repo: u/n}", "u/n", True)])
def test_hub_takes_a_name_or_a_section(recipe, hub, repo, private):
    got = recipe(f"hub: {hub}\n").recipe.hub
    assert (got if private is None else got.repo) == repo
    assert private is None or got.private is private
    check_repo_name(repo)


def test_rewards_as_mapping_and_as_list_are_the_same(recipe):
    mapping = recipe(rewards("{'user_code:correct': 2}")).recipe.reward_list()
    listed = recipe(rewards("[{fn: 'user_code:correct', weight: 2}]")).recipe.reward_list()
    assert mapping == listed == [Reward(fn="user_code:correct", weight=2.0)]


def sections(hint=Recipe):
    below = [model for field in hint.model_fields.values() for model in models_in(field.annotation)]
    return list(dict.fromkeys([hint, *(inner for model in below for inner in sections(model))]))


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_sections_are_frozen_and_refuse_unknown_keys(section: type[BaseModel]):
    assert section.model_config["frozen"] and section.model_config["extra"] == "forbid"
