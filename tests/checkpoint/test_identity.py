"""Which run a recipe is of: what may change on the way, what may not, and the notes of it in config.yaml."""

import pytest
import yaml

from align.checkpoint import identity
from align.checkpoint.checkpoint import CheckpointError
from align.checkpoint.identity import Change, changes, check_same, followed, history, recorded
from align.checkpoint.provenance import resolved
from align.config.experiment import load_experiment

RECIPE = {
    "model": {"policy": "some/model", "adapter": {"rank": 4, "alpha": 8}},
    "data": {"prompts": "prompts.jsonl"},
    "rewards": {"rewards.format:boxed": 1.0},
    "objective": {"name": "gfpo", "k": 2},
    "run": {"out": "runs/x", "steps": 4},
}


@pytest.fixture
def recipe(tmp_path):
    """The resolved recipe with overrides, as a checkpoint keeps it."""
    path = tmp_path / "recipe.yaml"
    text = yaml.safe_dump(RECIPE).replace("rewards.format:boxed", "rewards.length:length_penalty")
    path.write_text(text)
    return lambda *overrides: followed(resolved(load_experiment(path, overrides)))


def test_where_a_run_writes_is_no_part_of_it(recipe):
    assert changes(recipe(), recipe("run.out=there", "run.resume=elsewhere")) == []


@pytest.mark.parametrize(
    "override, change",
    [
        ("run.seed=3", Change("run.seed", 0, 3)),
        ("model.policy=other/model", Change("model.policy", "some/model", "other/model")),
        ("model.chat_template=trl:qwen2_5", Change("model.chat_template", None, "trl:qwen2_5")),
        ("model.dtype=bfloat16", Change("model.dtype", "auto", "bfloat16")),
        ("model.adapter.rank=8", Change("model.adapter.rank", 4, 8)),
        ("model.adapter.targets=[q_proj]", Change("model.adapter.targets", "all-linear", ["q_proj"])),
        ("optim.optimizer=sgd", Change("optim.optimizer", "adamw", "sgd")),
    ],
)
def test_another_run_is_refused_by_what_differs(recipe, tmp_path, override, change):
    found = changes(recipe(), recipe(override))
    assert found == [change]
    with pytest.raises(CheckpointError) as raised:
        check_same(tmp_path, found)
    assert f"{tmp_path} holds another run: {change}; resume with the recipe that wrote it" in str(raised.value)
    assert "start anew" in str(raised.value) and str(change).startswith(f"{change.key} was ")


def test_an_adapter_that_comes_or_goes_is_another_run(recipe, tmp_path):
    for then, now in ((recipe(), recipe("model.adapter=null")), (recipe("model.adapter=null"), recipe())):
        with pytest.raises(CheckpointError, match="model.adapter.rank was (4, is not set|not set, is 4)"):
            check_same(tmp_path, changes(then, now))


@pytest.mark.parametrize("override", ["optim.lr=0.5", "run.steps=9", "objective.k=3", "sampling.temperature=0.7"])
def test_other_keys_may_change_and_are_told(recipe, tmp_path, override):
    found = changes(recipe(), recipe(override))
    assert any(f"{change}".startswith(f"{override.partition('=')[0]} was ") for change in found)
    check_same(tmp_path, found)


def test_a_recipe_from_before_a_key_was_there_had_its_default(recipe):
    then = recipe()
    del then["optim"]["schedule"], then["model"]["dtype"], then["sentinel"]["remind"], then["objective"]["metric"]
    assert changes(then, recipe()) == []
    assert [str(c) for c in changes(then, recipe("optim.schedule=linear"))] == [
        'optim.schedule was "constant", is "linear"'
    ]


@pytest.mark.parametrize("then", [{}, {"run": {}}, {"run": {"seed": 3}}])
def test_a_run_of_which_nothing_is_known_is_taken_as_it_is(recipe, then):
    assert changes(then, recipe()) == []


def test_a_recipe_that_is_valid_no_more_is_compared_as_it_stands(recipe, tmp_path):
    then = recipe() | {"gone": {"key": 1}}
    assert changes(then, recipe()) == [Change("gone.key", 1, None)]


def test_a_model_with_another_name_in_the_same_folder_is_the_same(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    check_same(tmp_path, [Change("model.policy", f"{tmp_path}/model", f"{tmp_path}/link")])


def test_a_chat_template_under_another_name_is_the_same(tmp_path):
    for name in ("a.jinja", "b.jinja"):
        (tmp_path / name).write_text("{{ messages }}")
    (tmp_path / "link.jinja").symlink_to("a.jinja")
    check_same(tmp_path, [Change("model.chat_template", f"{tmp_path}/a.jinja", f"{tmp_path}/link.jinja")])
    with pytest.raises(CheckpointError, match=r"holds another run: model.chat_template was .*a.jinja.*, is .*b.jinja"):
        check_same(tmp_path, [Change("model.chat_template", f"{tmp_path}/a.jinja", f"{tmp_path}/b.jinja")])


@pytest.mark.parametrize("text", ["", "- 1", "model: 1", "run: 1", "{", "\0", "run: {out: 'x"])
def test_a_config_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"run.resume: .*config.yaml (cannot be read|is no recipe).*start anew"):
        recorded(tmp_path)


def test_the_notes_are_those_that_had_an_effect(tmp_path):
    assert recorded(tmp_path) == {} and history(tmp_path, 2, []) == []
    first, second = Change("optim.lr", 1.0, 2.0), Change("optim.lr\n", 2.0, "thr\u00e9e\u2028lines")
    lines = history(tmp_path, 2, [first])
    assert lines == ["# from step 3 on: optim.lr was 1.0, is 2.0"]
    (tmp_path / "config.yaml").write_text("\n".join([*lines, "run: {out: x}"]))
    assert recorded(tmp_path) == {"run": {"out": "x"}}
    lines = history(tmp_path, 4, [second])
    assert lines == [
        "# from step 3 on: optim.lr was 1.0, is 2.0",
        r'# from step 5 on: optim.lr\n was 2.0, is "thr\u00e9e\u2028lines"',
    ]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    assert history(tmp_path, 4, []) == lines[:1]  # the second never had an effect
    assert history(tmp_path, 2, []) == [] and history(tmp_path, 0, [first]) == []
    assert all(identity.ENTRY.fullmatch(line) for line in lines)


def test_an_infinite_bound_stays_one(recipe):
    then = recipe("objective.clip_high=.inf", "optim.max_grad_norm=.inf")
    assert then["objective"]["clip_high"] == then["optim"]["max_grad_norm"] == float("inf")
    assert changes(yaml.safe_load(yaml.safe_dump(then)), then) == []


def test_a_value_that_is_no_json_is_shown():
    assert str(Change("model.policy", yaml.safe_load("2020-01-01"), "x")) == 'model.policy was "2020-01-01", is "x"'


def test_a_start_from_an_adapter_is_the_same_run_again(recipe):
    overrides = ("model.adapter={from: runs/first/adapter}", "objective.metric=token_efficiency")
    assert changes(yaml.safe_load(yaml.safe_dump(recipe(*overrides))), recipe(*overrides)) == []
