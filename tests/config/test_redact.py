"""Planted secrets are hidden, and what only looks like one is not."""

import json

import pytest
import yaml

from align.config.experiment import load_experiment
from align.config.recipe_file import ConfigError
from align.config.redact import HIDDEN, redact, scrub

HUB = "hf_" + "abcdEFGH" * 4


@pytest.mark.parametrize(
    "config",
    [
        {"api_key": "k-123456"},
        {"judge_api_key": "k-123456"},
        {"apiKey": "k-123456"},
        {"accessToken": "k-123456"},
        {"token": "k-123456"},
        {"hub_token": "k-123456"},
        {"client_secret": "k-123456"},
        {"DB_PASSWORD": "k-123456"},
        {"keys": ["k-123456", "x"]},
        {"deep": [{"er": {"password": "k-123456"}}]},
        {"password": 123456},
        {"key": "k-123456", "url": "https://example.org/?q=k-123456"},
        {"url": "https://me:k-123456@example.org"},
        {"header": "Authorization: Bearer k-123456"},
        {"note": "hf_k123456789"},
    ],
)
def test_hidden(config):
    text = json.dumps(redact(config))
    assert HIDDEN in text and "123456" not in text


@pytest.mark.parametrize(
    "config",
    [
        {"max_response_tokens": 24, "per_token": 0.1, "micro_batch_tokens": 2048},
        {"chain": [{"key_tokens": {"weight": 0.5}}, {"top_tokens": {"share": 0.2}}]},
        {"metric": "token_efficiency", "denominator": "tokens", "monkey": "banana"},
        {"tokenizer": "some/tokenizer", "prompts": "rewards.gym:chain_sum", "empty": {}, "none": None, "yes": True},
        {"url": "https://example.org/a?b=c"},
    ],
)
def test_kept(config):
    assert redact(config) == config


@pytest.mark.parametrize(
    "command, shown",
    [
        ("rewards.0.args.api_key=s3cret7 run.steps=2", f"rewards.0.args.api_key={HIDDEN} run.steps=2"),
        (
            "'rewards=[{fn: a:b, args: {api_key: s3cret7, n: 2}}]'",
            f"'rewards=[{{fn: a:b, args: {{api_key: {HIDDEN}, n: 2}}}}]'",
        ),
        ('{"token": "s3cret7"}', f'{{"token": "{HIDDEN}"}}'),
        (f"x={HUB} y=1", f"x={HIDDEN} y=1"),
        ("optim.micro_batch_tokens=400 objective.add=[{key_tokens: {weight: 0.5}}]", None),
    ],
)
def test_scrub(command, shown):
    assert scrub(command) == (shown or command)


def test_a_secret_is_found_wherever_it_stands_in_the_command():
    assert scrub("a=[b,quite-plain]", {"args": {"secret": "quite-plain"}}) == f"a=[b,{HIDDEN}]"


def test_what_the_environment_holds(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "quite-plain-words")
    monkeypatch.setenv("SHORT_TOKEN", "of")
    assert redact({"x": "of quite-plain-words"}) == {"x": f"of {HIDDEN}"}


def test_a_hub_token_in_a_recipe_is_refused_and_not_shown(tmp_path):
    path = tmp_path / "recipe.yaml"
    recipe = {
        "model": {"policy": "some/model"},
        "data": {"prompts": "prompts.jsonl", "args": {"deep": [f"x={HUB}"]}},
        "rewards": {"rewards.length:length_penalty": 1.0},
        "objective": {"name": "gfpo", "k": 2},
        "run": {"out": "runs/x", "steps": 1},
    }
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ConfigError) as error:
        load_experiment(path)
    assert error.value.problems[0].endswith(
        "data.args.deep.0: holds a hub token; take it out of the recipe, revoke it, and set HF_TOKEN"
    )
    assert len(error.value.problems) == 1 and HUB not in str(error.value)


@pytest.mark.parametrize(
    "said",
    ["recipe.yaml:3: hub.token: unknown key; there are: repo", "data.args.token: holds a hub token; take it out"],
)
def test_what_a_message_says_of_a_key_is_no_secret(said):
    assert scrub(said) == said
    assert (
        scrub(f"{said}, api_key: x7Yplanted, password: 'planted'") == f"{said}, api_key: {HIDDEN}, password: '{HIDDEN}'"
    )
