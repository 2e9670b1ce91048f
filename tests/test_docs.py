"""What the pages say is true: examples work, links lead somewhere, names exist, generated parts are current."""

import ast
import json
import re
import sys
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from support import pages, tiny_model
from support.batches import loss_of, random_batch
from support.paths import ROOT, TESTS
from support.rollouts import failing, rollout

from align.check.check import bytewise
from align.commands.credit import credit
from align.config.compose import build_objective
from align.config.data_keys import Data
from align.config.experiment import examine, load_experiment
from align.config.problems import paths_in
from align.config.recipe import Recipe, RewardFunction
from align.config.recipe_file import RecipeFile
from align.config.rules import REPLAY
from align.data.prompts import Episode
from align.data.read import read_rows
from align.data.tokenise import make_pair, make_prompt
from align.environments import contract
from align.environments.nursery import Nursery, ask
from align.learner.passes import PROVIDED_BY
from align.loop import PHASES
from align.metrics import evaluation
from align.metrics.step import rollout_metrics
from align.registry import OBJECTIVES
from align.rollout.sources import Collected

FOLDERS = ("align", "recipes", "rewards", "launch", "tests")

PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
    if path.name != "CHANGELOG.md"
)

FLOORS = ast.parse((TESTS / "test_floors.py").read_text())

COMING_FROM = {"recipes/coming_from_trl.md", "recipes/coming_from_verl.md"}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def prose(page: str) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


def spans(text: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def rows(page: str, heading: str | None = None, head: str | None = None) -> list[list[str]]:
    """The cells of all rows of a page's tables: of those under a heading, or of those whose first row is `head`."""
    text = prose(page)
    if heading:
        text = re.split(r"^## ", text.split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]
    out = []
    for table in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        first, _, *rest = table.splitlines()
        if head is None or first == head:
            out += [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in rest]
    return out


# Examples


def modules(page: str) -> dict[str, str]:
    """{file: text} of the page's Python blocks that begin with `# file.py`."""
    found = ((re.match(r"# (\w+\.py)\b", text), text) for text in blocks(page, "python"))
    return {name[1]: text for name, text in found if name}


@pytest.fixture
def with_modules(tmp_path, monkeypatch):
    """Makes the modules of a page importable."""

    def make(page: str) -> None:
        for name, text in modules(page).items():
            (tmp_path / name).write_text(text)
            monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(ROOT)  # recipes name each other from there
    return make


def whole(part: dict) -> dict:
    """A recipe with a part put over it; one of pairs where the part has pairs. A whole recipe stays what it is."""
    if {"model", "data", "run"} <= set(part):
        return part
    pairs = "pairs" in part.get("data", {})
    out = yaml.safe_load((ROOT / "recipes" / ("dpo_champ.yaml" if pairs else "gfpo_chain_sum.yaml")).read_text())
    for name, value in part.items():
        replaced = name in ("rewards", "hub") or name.startswith("objective") or name == "data"
        out[name] = value if replaced else {**out.get(name, {}), **value}
    if "objectives" in part:
        del out["objective"]
    return out


EXAMPLES = [(page, i) for page in PAGES for i in range(len(blocks(page, "yaml")))]


@pytest.mark.parametrize(("page", "number"), EXAMPLES, ids=[f"{page}-{i}" for page, i in EXAMPLES])
def test_every_yaml_block_is_valid(page, number, tmp_path, with_modules):
    """By itself where it is a whole recipe, else put over one."""
    with_modules(page)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(whole(yaml.safe_load(blocks(page, "yaml")[number]))))
    assert examine(tmp_path / "recipe.yaml").problems == ()


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_compiles(page):
    for text in blocks(page, "python"):
        compile(text, page, "exec")


def test_an_objective_of_your_own(tmp_path, with_modules):
    """The example of align/README.md: its code, named by its YAML, without touching `align/`."""
    with_modules("align/README.md")
    recipe = whole(yaml.safe_load(blocks("align/README.md", "yaml")[0]))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (objective,) = load_experiment(tmp_path / "recipe.yaml").objectives
    assert objective.name == "positive_only"
    batch, logprob = random_batch(0)
    _, gradient = loss_of(objective, batch, logprob)
    assert gradient.any() and (gradient <= 0).all()  # descent only ever raises log-probabilities


def test_the_replay_of_the_page_of_methods(tmp_path):
    page = "align/objectives/README.md"
    (tmp_path / "rollouts.jsonl").write_text(blocks(page, "json")[0])
    experiment = load_experiment(ROOT / "recipes/grpo_chain_sum.yaml", (), REPLAY)
    assert credit(experiment, tmp_path / "rollouts.jsonl") == [
        json.loads(line) for line in blocks(page, "text")[0].splitlines()
    ]


@pytest.mark.parametrize("text", blocks("align/data/README.md", "json"))
def test_the_rows_of_the_page_of_data(text):
    row, data = json.loads(text), Data(prompts="x", max_prompt_tokens=10_000, max_response_tokens=10_000)
    make = make_pair if "chosen" in row else make_prompt
    tokenizer = tiny_model.tokenizer()
    made = make(row, 0, "page", data, tokenizer, [tokenizer.eos_token_id])
    assert made.ids and made.conversational == isinstance(row["prompt"], list)


def test_a_function_of_rows(with_modules):
    with_modules("align/data/README.md")
    (section,) = [text for text in blocks("align/data/README.md", "yaml") if "my_data" in text]
    found = read_rows(Data.model_validate(yaml.safe_load(section)["data"]), bytewise())
    assert len(found.own) == 180 and not found.problems


@pytest.mark.parametrize("page", sorted(COMING_FROM))
def test_rewards_of_other_libraries(page, with_modules):
    with_modules(page)
    (name,) = modules(page)
    module = __import__(name.removesuffix(".py"))
    columns = dict(answer=["7", "8"], data_source=["x"] * 2, reward_model=[{"ground_truth": "7"}] * 2)
    function = module.contains_answer if page.endswith("trl.md") else module.score
    assert function(prompts=["?"] * 2, completions=["7", [{"content": "9"}]], completion_ids=[[1]] * 2, **columns) == [
        1.0,
        0.0,
    ]


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe):
    experiment = load_experiment(recipe)
    names = [objective.name for objective in experiment.objectives]
    assert experiment.recipe.run.out == f"runs/{recipe.stem}"
    assert recipe.stem.startswith(names[0]) or len(experiment.objectives[0].chain) > 2


def test_environments_of_your_own(with_modules):
    """The examples of rewards/environments.md, as their YAML names them, each in its process."""
    page = "rewards/environments.md"
    with_modules(page)
    sections = [yaml.safe_load(text)["environment"] for text in blocks(page, "yaml")]
    shop, game = (contract.Environment("own", keys["name"], keys.get("args", {})) for keys in sections[:2])
    call = contract.Call("price", {"item": "tea"})
    with closing(Nursery(shop, contract.Limits(seconds=60.0))) as nursery:
        one, (tool,) = nursery.instance(0), nursery.wait().tools
        requests = contract.Start({"item": "tea"}, 0), contract.Reply("", (call,)), contract.Finish()
        opening, answer, outcome = [ask([(one, request)])[0] for request in requests]
    assert tool["function"]["name"] == "price" and opening.text == "What does tea cost?"
    assert answer.messages == [contract.Message("tool", "3", "price")] and outcome.reward == 1.0
    (few_calls,) = [text for name, text in modules(page).items() if name == "my_rewards.py"]
    exec(few_calls, found := {})
    assert found["few_calls"](["?"], [SimpleNamespace(**outcome.attributes)]) == [-0.1]
    with closing(Nursery(game, contract.Limits(seconds=60.0))) as nursery:
        opening, *answers = [
            ask([(nursery.instance(0), request)])[0]
            for request in (
                contract.Start({"seed": 3}, 3),
                *(contract.Reply(str(n)) for n in ("x", 0, 17, *range(1, 17))),
            )
        ]
    assert (opening.text, opening.anchor) == ("Guess a number from 1 to 16.", "1..16")
    hints = [answer.messages[0].content for answer in answers[:4]]
    assert hints == ["Higher.", "Higher.", "Lower.", "Higher."] and answers[3].anchor == "2..16"
    (right,) = [answer for answer in answers if answer.ended]
    assert (right.messages[0].content, right.reward, right.success) == ("Right!", 1.0, True)


# Links and names


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    out = set()
    for title in re.findall(r"^#{1,6} (.+)$", prose(str(path.relative_to(ROOT))), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()).replace(" ", "-")
        out.add(next(name for n in range(99) if (name := f"{slug}-{n}" if n else slug) not in out))
    return out


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "``", prose(page))):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent.joinpath(name).resolve() if name else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    """Those in backticks; words in capitals are no names of files, but that of a page."""
    paths = [span for span in spans(prose(page)) if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*", span)]
    paths = [path for path in paths if not re.search(r"[A-Z]{2}", path.replace("README.md", ""))]
    assert [path for path in paths if not (ROOT / path).exists()] == []


KEYS = {
    *paths_in(Recipe),
    *(f"objective.{key.name}" for name in OBJECTIVES for key in pages.entry(name).arguments),
}


@pytest.mark.parametrize("page", PAGES)
def test_keys_exist(page):
    """Every `section.key` is one of the recipe; of the tables of other libraries' names, those in the second column."""
    text = "\n".join(row[1] for row in rows(page)) if page in COMING_FROM else prose(page)
    sections = "|".join(name for name in Recipe.model_fields if name != "rewards")  # a package has that name too
    named = [span.split("=")[0].split(":")[0] for span in spans(text)]
    keys = {name for name in named if re.fullmatch(rf"(?:{sections})(?:\.[a-z_]+)+", name)}
    assert {key for key in keys - KEYS if not key.endswith(".py")} == set()


def test_names_of_trl_exist():
    from trl import DPOConfig, GRPOConfig  # takes seconds

    known = {field.name for config in (GRPOConfig, DPOConfig) for field in fields(config)}
    named = [name for row in rows("recipes/coming_from_trl.md", head="| TRL | here | note |") for name in spans(row[0])]
    assert len(named) > 60 and set(named) - known == set()


# What follows from the code


@pytest.mark.parametrize("page", pages.PARTS)
def test_pages_are_current(page):
    assert (ROOT / page).read_text() == pages.render(page), "run: python tests/support/pages.py"


def test_the_readme_is_short_and_names_every_method():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 90
    named, more = re.search(r"with (.+?) and (\d+) more methods", text).groups()
    assert len(named.split(", ")) + int(more) == len(OBJECTIVES)
    assert re.findall(r"^\| \[(\w+)\]", text, re.MULTILINE) == list(OBJECTIVES)


def test_every_method_has_its_words():
    assert list(pages.METHODS) == list(OBJECTIVES)
    for told in pages.METHODS.values():
        assert set(told) == {"short", "yaml", "use", "watch"} and len(told["short"]) <= 60


def test_what_keys_are_is_said_once():
    sections = {name: info for name, info in Recipe.model_fields.items() if name != "sentinel"}
    inner = [found for name, info in sections.items() for found in pages.nested(name, info)]
    keys = {f"{path}.{info.alias or name}": info for path, model in inner for name, info in model.model_fields.items()}
    keys |= Recipe.model_fields
    assert set(pages.KEYS) == {path for path, info in keys.items() if not info.description}


def test_the_picture_has_the_floors():
    assigned = {node.targets[0].id: node.value for node in FLOORS.body if isinstance(node, ast.Assign)}
    picture, floors = blocks("align/README.md", "")[1].splitlines(), ast.literal_eval(assigned["FLOORS"])
    for line, floor in zip(picture, reversed(floors), strict=True):
        assert {room if "." in room else f"{room}/" for room in floor} <= set(line.split()), line


# Metrics


def documented() -> list[re.Pattern]:
    """The names in the tables of align/run/README.md; words in capitals stand for any name."""
    names = [name for row in rows("align/run/README.md", "Metrics") for name in spans(row[0])]
    return [re.compile(re.sub(r"\b[A-Z]+\b", "[^/]+", name.replace("MEASURE", ".+"))) for name in names]


def undocumented(names) -> set[str]:
    known = [*documented(), re.compile("step")]
    plain = {name: re.sub(r"_(low|high)$", "", name) if name.startswith("eval/") else name for name in names}
    return {name for name, base in plain.items() if not any(pattern.fullmatch(base) for pattern in known)}


def test_metrics_of_real_runs_are_documented():
    names = json.loads((TESTS / "support/metric_names.json").read_text())["names"]
    assert len(names) > 90 and undocumented(names) == set()


def names_of_rollouts() -> set[str]:
    """What two responses with two rewards measure, with and without a failed one."""
    some = [replace(rollout(0, i, i + 1.0), rewards={"r": i + 1.0, "s": 0.5}) for i in range(2)]
    found = [some, [*some, replace(failing(0, 2), rewards={"r": None, "s": 0.5})]]
    played = Episode("r", "terminated", success=True, calls=2)
    found.append([replace(one, response=replace(one.response, episode=played)) for one in some])
    rewards = [RewardFunction(name, None, 1.0) for name in ("r", "s")]
    found.append([replace(one, response=replace(one.response, policy_step=0)) for one in some])
    names = {name for sampled in found for name in rollout_metrics([Collected(None, sampled, rewards=rewards)], 1)}
    return {*names, "overlap/seconds", "overlap/hidden"}


COMPUTED = {
    "rollouts": names_of_rollouts(),
    "evaluation": evaluation.names(["r"], [1, 8]),
    "phases": [f"seconds/{phase}" for phase in (*PHASES, "record")],
    "passes": [f"pass/{name}/{unit}" for name in PROVIDED_BY for unit in ("rows", "tokens")],
    "seconds of passes": [f"seconds/pass/{name}" for name in PROVIDED_BY],
}


@pytest.mark.parametrize("names", COMPUTED.values(), ids=COMPUTED)
def test_metrics_that_the_code_gives_are_documented(names):
    assert names and undocumented(names) == set()


def test_made_up_rollouts_have_all_kinds_of_metrics():
    assert {"response/entropy", "rewards/r", "rewards/r/failed", "rewards/r/share"} <= COMPUTED["rollouts"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_to_watch_is_there(name):
    """A metric of every run, or one that the method's losses write."""
    measured = pages.measures(pages.objective(name))
    others = {
        name for row in rows("align/run/README.md", head="| metric | unit | of | meaning |") for name in spans(row[0])
    }
    watched = set(pages.METHODS[name]["watch"])
    assert undocumented(watched) == set() and watched & others <= set(measured)


KLS = [{"coef": 1, "estimator": f"k{n}", "to": to} for n in (1, 2, 3) for to in ("reference", "old_policy")]

ADDED = [*({"kl_policy_ref": kl} for kl in KLS), {"entropy_bonus": {"coef": 1}}]


def test_the_metrics_of_losses_are_those_that_they_write():
    made = [pages.objective(name) for name in OBJECTIVES]
    made += [build_objective({"name": "grpo", "add": [loss]}, RecipeFile({}), ("objective",)) for loss in ADDED]
    table = rows("align/run/README.md", head="| metric | unit | of | meaning |")
    named = {name for row in table for name in spans(row[0])}
    assert named == {name for objective in made for name in pages.measures(objective)}
