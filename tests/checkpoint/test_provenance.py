"""What a run writes about itself, and what its weights follow from."""

import yaml

from align.checkpoint.provenance import decided, resolved
from align.config.experiment import load_experiment
from align.config.redact import HIDDEN


def test_a_run_writes_no_secret(tmp_path):
    """What becomes config.yaml, the card and the trackers' configuration."""
    path = tmp_path / "recipe.yaml"
    recipe = {
        "model": {"policy": "some/model"},
        "data": {"prompts": "prompts.jsonl", "args": {"token": "planted-0"}},
        "rewards": [{"fn": "rewards.length:length_penalty", "args": {"per_token": 0.1, "api_key": "planted-1"}}],
        "objective": {"name": "gfpo", "k": 2},
        "run": {"out": "runs/x", "steps": 1},
    }
    path.write_text(yaml.safe_dump(recipe))
    experiment = load_experiment(path, ["data.args.password=planted-2"])
    plain = resolved(experiment)
    text = yaml.safe_dump(plain)
    assert "planted" not in text
    assert plain["rewards"][0]["args"] == {"per_token": 0.1, "api_key": HIDDEN}
    assert plain["data"]["args"] == {"token": HIDDEN, "password": HIDDEN}
    assert experiment.recipe.rewards[0].args["api_key"] == "planted-1"  # the reward still gets it


def test_what_the_weights_follow_from_changes_with_each_file_that_the_recipe_names(tmp_path, monkeypatch):
    """So that rollouts of another objective, reward or argument are not used again after a kill."""
    monkeypatch.syspath_prepend(tmp_path)
    source = "from align.objectives import grpo as own\n\ndef judge(completions, **_):\n    return 1\n"
    for name in ("decided_objective", "decided_reward", "decided_argument"):
        (tmp_path / f"{name}.py").write_text(source)
    path = tmp_path / "recipe.yaml"
    recipe = {
        "model": {"policy": "some/model"},
        "data": {"prompts": "prompts.jsonl"},
        "rewards": [{"fn": "decided_reward:judge", "args": {"correct": "decided_argument:judge", "other": "a:b"}}],
        "objective": {"name": "decided_objective:own"},
        "run": {"out": "runs/x", "steps": 1},
    }
    path.write_text(yaml.safe_dump(recipe))
    before = decided(load_experiment(path))
    assert decided(load_experiment(path)) == before
    for name in before["files"]:
        (tmp_path / f"{name}.py").write_text(f"{source}\n# another {name}\n")
        assert decided(load_experiment(path)) != before
        (tmp_path / f"{name}.py").write_text(source)
    assert sorted(before["files"]) == ["decided_argument", "decided_objective", "decided_reward"]


def test_what_the_weights_follow_from_changes_with_the_chat_template(tmp_path):
    """Its text, not only its name: rollouts of an earlier text are not used again."""
    path, file = tmp_path / "recipe.yaml", tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    recipe = {
        "model": {"policy": "some/model", "chat_template": "own.jinja"},
        "data": {"prompts": "prompts.jsonl"},
        "rewards": {"rewards.length:length_penalty": 1.0},
        "objective": {"name": "gfpo", "k": 2},
        "run": {"out": "runs/x", "steps": 1},
    }
    path.write_text(yaml.safe_dump(recipe))
    before = decided(load_experiment(path))
    assert before["model"]["chat_template"] == str(file)  # found beside the recipe
    assert decided(load_experiment(path)) == before
    file.write_text(file.read_text() + "!")
    assert decided(load_experiment(path)) != before
    assert "chat_template" not in decided(load_experiment(path, ["model.chat_template=null"]))
    assert "chat_template" in decided(load_experiment(path, ["model.chat_template=trl:qwen2_5"]))
