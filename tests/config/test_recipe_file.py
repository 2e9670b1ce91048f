"""A recipe's file and the overrides of the command line."""

import pytest
import yaml
from support.recipes import BASE, alike, problems_of

from align.config.experiment import load_experiment
from align.config.recipe_file import ConfigError, Loader, read
from align.objectives import gfpo


@pytest.mark.parametrize(
    "text, message",
    [
        (BASE + "optim: {lr: 1\n", "not valid YAML: while parsing a flow mapping"),
        (BASE + "optim:\n\tlr: 1\n", "line 14"),
        (BASE + "x: @y\n", "not valid YAML"),
        ("- model\n", "must be a mapping with keys such as model, data, objective"),
        ("model\n", "must be a mapping"),
        ("", "must be a mapping"),
        (b"\xff\xfe", "not valid YAML"),
    ],
)
def test_not_a_recipe(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (problem,) = problems_of(load_experiment, path)
    assert problem.startswith(f"{path}: ") and message in problem


BAD_OVERRIDES = [
    ("run.stps=3", "run.stps", "unknown key; did you mean 'steps'?"),
    ("optim.steps=3", "optim.steps", "unknown key; it belongs at run.steps"),
    ("optm.lr=3", "optm", "unknown key; did you mean 'optim'?"),
    ("run.steps=ten", "run.steps", "valid integer"),
    ("run.steps=", "run.steps", "missing"),
    ("optim.lr=-3e-4", "optim.lr", "should be greater than 0"),
    ("sampling.group_size=1", "sampling.group_size", "must be at least 2: group_advantage compares"),
    ("sampling.group_size=0", "sampling.group_size", "greater than or equal to 1"),
    ("sampling=null", "sampling", "but it is None"),
    ("objective.k=1", "objective.k", "greater than or equal to 2, but it is 1"),
    ("objective={name: gfpo, k: 1}", "objective.k", "greater than or equal to 2, but it is 1"),
    ("objective.metrc=shortest", "objective.metrc", "did you mean 'metric'?"),
    ("run.steps.x=3", "run.steps.x", "'steps' is not a section"),
    ("run.steps={", "run.steps", "not a YAML value: '{'"),
    ("run.steps", "'run.steps'", "write key=value, for example run.steps=10"),
    ("=3", "'=3'", "write key=value, for example run.steps=10"),
    ("hub=x", "hub", "must be written user/name"),
    ("run.=3", "'run.=3'", "write key=value, for example run.steps=10"),
    (".run.steps=3", "'.run.steps=3'", "write key=value, for example run.steps=10"),
    ("run..steps=3", "'run..steps=3'", "write key=value, for example run.steps=10"),
    ("run.out=''", "run.out", "is empty; write a name"),
]


@pytest.mark.parametrize("override, key, message", BAD_OVERRIDES, ids=[case[0] for case in BAD_OVERRIDES])
def test_bad_overrides_name_the_command_line(recipe, override, key, message):
    (problem,) = problems_of(recipe, overrides=[override])
    assert problem.startswith(f"command line: {key}: ") and message in problem


def test_all_bad_overrides_are_reported(recipe):
    problems = problems_of(recipe, overrides=["run.steps", "run.seed={", "run.steps=3"])
    assert len(problems) == 2 and "'run.steps'" in problems[0] and "run.seed" in problems[1]


def test_overrides_apply(recipe):
    words = ["run.steps=10", "optim.lr=3e-4", "objective.k=6", "model.adapter.rank=4", "eval.pass_at=[1, 2]"]
    experiment = recipe(overrides=[*words, "rewards={'user_code:correct': 2}", "run.seed=1", "run.seed=2"])
    got = experiment.recipe
    assert (got.run.steps, got.optim.lr, got.run.seed) == (10, 3e-4, 2)  # of two, the last counts
    assert (got.model.adapter.rank, got.model.policy, got.eval.pass_at) == (4, "some/model", [1, 2])
    assert [(r.name, r.weight) for r in experiment.rewards] == [("correct", 2.0)]
    assert experiment.file.data["objective"]["k"] == 6
    assert alike(experiment.objectives[0], gfpo(k=6)) and not alike(experiment.objectives[0], gfpo(k=4))


def test_an_override_may_hold_an_equals_sign(recipe):
    assert recipe(overrides=["run.out=runs/a=b"]).recipe.run.out == "runs/a=b"


def test_merge_keys_and_anchors_of_yaml(recipe):
    experiment = recipe(("steps: 2", "&n steps: &two 2"), "eval: {samples: *two}\n")
    assert experiment.recipe.eval.samples == experiment.recipe.run.steps == 2


def test_overrides_reach_rewards_and_list_items(recipe):
    weight = recipe(overrides=["rewards.rewards.length:length_penalty=0.5"]).rewards[0].weight
    assert weight == 0.5
    added = ("objective: {name: gfpo, k: 4}", "objective: {name: grpo, add: [{kl_policy_ref: {coef: 1}}]}")
    (objective,) = recipe(added, overrides=["objective.add.0.kl_policy_ref.coef=1e-4"]).objectives
    assert objective.losses[1].coef == 1e-4
    with pytest.raises(ConfigError, match="'3' must be a place in the list, below 1"):
        recipe(added, overrides=["objective.add.3.kl_policy_ref.coef=1"])


def test_numbers_without_a_point_are_numbers(recipe):
    args = ("rewards.length:length_penalty: 1.0", "rewards.length:length_penalty: 1e-1")
    assert recipe(args, overrides=["objective.weight=5e-1"]).rewards[0].weight == 0.1


SHARED = """\
eval: &section
  samples: 2
  pass_at: [1, 2]
optim:
  <<: *section
other: *section
more: [*section, *section]
"""


def test_an_override_changes_one_section_and_not_its_aliases(tmp_path):
    (tmp_path / "shared.yaml").write_text(SHARED)
    words = ["eval.samples=3", "more.0.samples=4", "optim.samples=5", "other.pass_at.0=6"]
    data = read(tmp_path / "shared.yaml", words).data
    assert data["eval"] == {"samples": 3, "pass_at": [1, 2]} and data["optim"]["samples"] == 5
    assert data["other"] == {"samples": 2, "pass_at": [6, 2]}
    assert [section["samples"] for section in data["more"]] == [4, 2]


def test_keys_that_a_merge_brings_along_have_their_own_line(tmp_path):
    (tmp_path / "shared.yaml").write_text(SHARED)
    places = read(tmp_path / "shared.yaml").places
    assert places["optim", "samples"].endswith(":2") and places["other", "samples"].endswith(":2")
    assert places["other",].endswith(":6")


# (a value, part of the message): read otherwise than it was meant, or by nobody
FLAWS = [
    ("010", "is another number in YAML 1.1"),
    ("-010", "is another number in YAML 1.1"),
    ("08", "is another number in YAML 1.1"),
    ("0_7", "is another number in YAML 1.1"),
    ("1:30", "is another number in YAML 1.1"),
    ("1:30.5", "is another number in YAML 1.1"),
    ("9" * 5000, "is larger than 64 bits hold"),
    (str(2**63), "is larger than 64 bits hold"),
    ("0x" + "f" * 5000, "is larger than 64 bits hold"),
    ("2024-13-45", "'2024-13-45' cannot be read: month must be in 1..12"),
    ("!!bool x", "'x' cannot be read: it is no bool"),
    ("!!int x", "'x' cannot be read: invalid literal"),
    ("!!timestamp x", "'x' cannot be read: it is no timestamp"),
    (r'"\ud83d"', "holds half a character; write the whole one"),
    (r'{"\ud83d": 1}', "holds half a character; write the whole one"),
    ("{lr: 1, lr: 2}", "lr: stands twice; keep one"),
    ("{a: {lr: 1, lr: 2}}", "a.lr: stands twice; keep one"),
    ("&x [*x]", "holds itself, by its anchor; write it out"),
    ("&x {a: {b: *x}}", "a.b: holds itself, by its anchor; write it out"),
    ("[" * 60 + "]" * 60, "stands more than 50 lists and mappings deep"),
    ("&a [1]".join(["[", "]"]), None),
]


@pytest.mark.parametrize("value, message", FLAWS, ids=[value[:20] for value, _ in FLAWS])
def test_a_value_that_nobody_means_is_refused_with_its_place(tmp_path, value, message):
    path = tmp_path / "recipe.yaml"
    for text, words, where in (
        (f"a: 1\nx: {value}\n", [], f"{path}:2: x"),
        ("a: 1\n", [f"x={value}"], "command line: x"),
    ):
        path.write_text(text)
        if message is None:
            read(path, words)
            continue
        (problem,) = problems_of(read, path, words)
        assert problem.startswith(where) and message in problem and len(problem) < 400
        problem.encode()  # can be printed


@pytest.mark.parametrize("value", ["'010'", "0", "0.5", "-0.5", "1_000", "12:30 o'clock", "a:b", "1e5", "0x1f", "yes"])
def test_other_values_are_read_as_ever(tmp_path, value):
    (tmp_path / "recipe.yaml").write_text(f"x: {value}\n")
    assert read(tmp_path / "recipe.yaml").data == yaml.load(f"x: {value}", Loader=Loader)


def bomb(depth, leaf, part):
    """A text in which each level names the one before five times."""
    levels = [leaf, *(part.format(aliases=", ".join([f"*a{i}"] * 5)) for i in range(depth))]
    return "".join(f"a{i}: &a{i} {level}\n" for i, level in enumerate(levels))


@pytest.mark.parametrize("leaf, part", [("1", "[{aliases}]"), ("{x: 1}", "{{<<: [{aliases}]}}")])
def test_aliases_that_multiply_are_refused_at_once(tmp_path, leaf, part):
    path = tmp_path / "recipe.yaml"
    path.write_text(bomb(20, leaf, part))
    (problem,) = problems_of(read, path)
    assert "more than 100000 keys and values; do aliases multiply them?" in problem
    path.write_text(bomb(3, leaf, part))
    assert read(path).data["a3"]


@pytest.mark.parametrize("override", ["x=" + "[" * 5000, "x\udcff=1", "x=\udcff"])
def test_an_override_that_cannot_be_read_or_printed(tmp_path, override):
    (tmp_path / "recipe.yaml").write_text("a: 1\n")
    (problem,) = problems_of(read, tmp_path / "recipe.yaml", [override])
    assert problem.startswith("command line: ") and len(problem.encode()) < 400


def test_a_file_that_is_too_deep_to_read(tmp_path):
    (tmp_path / "recipe.yaml").write_text("x: " + "[" * 5000)
    (problem,) = problems_of(read, tmp_path / "recipe.yaml")
    assert "not valid YAML: lists and mappings stand in each other too deeply" in problem
