"""A corpus of broken inputs: each is one defect in a healthy recipe, and is refused with its place and its fix."""

import json
import re
import sys

import datasets
import pytest
from support.broken import corpus
from support.broken.files import DATA, MODELS, OWN, REWARDS
from support.broken.inputs import KINDS, NAMES
from support.broken.models import MODEL_FILES
from support.broken.recipes import CROSS, KEYS, LAUNCH, RANGES
from typer.testing import CliRunner

from align.__main__ import app


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    return corpus.healthy(tmp_path_factory.mktemp("healthy"))


@pytest.fixture
def bench(template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    yield corpus.bench(template, tmp_path)
    for name in ("corpus_rewards", "exploding", "leaving"):
        sys.modules.pop(name, None)


CORPUS = {"keys": KEYS, "ranges": RANGES, "cross-rules": CROSS, "data": DATA, "models": MODELS, "rewards": REWARDS}
CORPUS |= {"files of models": MODEL_FILES, "names": NAMES, "other kinds": KINDS}
CASES = [pytest.param(*case, id=f"{kind}: {name}") for kind, cases in CORPUS.items() for name, *case in cases]


def test_the_corpus_is_large_enough():
    assert all(len(cases) >= 10 for cases in CORPUS.values()) and len(CASES) >= 60


def test_healthy_recipes_have_no_problem(bench):
    assert bench.checked()["problems"] == []
    bench.launch = LAUNCH
    assert bench.checked()["problems"] == []
    bench.guided()
    assert bench.checked()["problems"] == []


@pytest.mark.parametrize("defect, place, fix", CASES)
def test_a_broken_input_is_refused_with_its_place_and_its_fix(bench, defect, place, fix):
    defect(bench)
    result = bench.checked()
    assert not result["ok"] and result["facts"] == {}
    told = [problem for problem in result["problems"] if re.search(place, problem, re.DOTALL)]
    assert told, result["problems"]
    assert any(re.search(fix, problem, re.DOTALL) for problem in told), told
    assert len(result["problems"]) <= 3, result["problems"]  # one defect is not told in many ways


def test_defects_of_all_kinds_are_told_at_once(bench):
    bench.put("optim.learning_rate", 1)
    bench.put("run.steps", 0)
    bench.put("eval.pass_at", [9])
    bench.cut("model/model.safetensors")
    bench.rows([*corpus.prompts(), {"prompt": ""}, {"prompt": 4}])
    bench.recipe["rewards"] = [{"fn": OWN + "raises"}, {"fn": OWN + "gone"}, {"fn": OWN + "wants_solution"}]
    told = "\n".join(bench.checked()["problems"])
    for part in (
        *(r"optim\.learning_rate", r"run\.steps", r"eval\.pass_at", r"model\.safetensors: is cut", "row 9", "row 10"),
        *("reward 'raises'", "'gone'", "needs 'solution'"),
    ):
        assert re.search(part, told), (part, told)


@pytest.mark.parametrize("lost", ["model/tokenizer.json", "model/config.json"])
def test_a_broken_model_hides_no_row_and_no_reward(bench, lost):
    bench.remove(lost)
    bench.row({"prompt": ""})
    bench.reward(OWN + "raises")
    told = "\n".join(bench.checked()["problems"])
    assert "model.policy" in told and "row 4: 'prompt'" in told and "reward 'raises'" in told


def test_many_broken_rows_take_few_lines(bench):
    bench.rows([{"prompt": ""}] * 25)
    (told,) = bench.checked()["problems"]
    assert told.endswith("it is '' (and 24 more: rows 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...)")
    bench.rows([{"prompt": i} for i in range(25)])
    told = bench.checked()["problems"]
    assert len(told) == 11 and "25 rows cannot be used, for 25 reasons" in told[-1]


def test_the_command_line(bench):
    bench.launch = LAUNCH
    bench.checked()

    def check(*arguments):
        done = CliRunner().invoke(app, ["check", "recipe.yaml", *arguments])
        return done.exit_code, done.stdout

    code, said = check("--json", "--launch", "launch.yaml")
    found = json.loads(said)
    assert code == 0 and found["ok"] and found["problems"] == []
    assert found["facts"]["step"]["rows"] == 8 and found["facts"]["launch"]["processes"] == 2
    code, said = check("optim.lr=-1", "--json")
    assert code == 1 and json.loads(said)["problems"][0].startswith("command line: optim.lr")
    code, said = check("optim.lr=-1")
    assert code == 1 and "problem: command line: optim.lr" in said
