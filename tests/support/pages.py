"""Writes the parts of the pages that follow from the code: `python tests/support/pages.py`.

Such a part stands between two comments of a page that is otherwise written by hand. What the code does not say of a
method or a key is in `methods.yaml` and `keys.yaml` beside this file. `tests/test_docs.py` says which page is stale.
"""

from __future__ import annotations

import inspect
import itertools
import json
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from align.batch import Batch
from align.commands.objectives import entry, kind
from align.config.compose import build_objective
from align.config.model_keys import FromRecipe
from align.config.problems import models_in
from align.config.recipe import Recipe
from align.config.recipe_file import RecipeFile
from align.config.sentinel import Rule, Sentinel
from align.credit import assign
from align.losses.loss import Current
from align.objectives.objective import Objective
from align.registry import LOSSES, OBJECTIVES, PAIRS, POLICY, TRANSFORMS

ROOT = Path(__file__).parents[2]

METHODS = yaml.safe_load(Path(__file__).with_name("methods.yaml").read_text())

KEYS = yaml.safe_load(Path(__file__).with_name("keys.yaml").read_text())

FOLDERS = {
    "system": "the machine: files that are whole or not there, deadlines, the clock, user code in processes, PyPI",
    "batch.py": "`Batch`: one step's responses as tensors, with their shapes",
    "ops.py": "the maths that several transforms or losses share",
    "ranges.py": "types and ranges of keys, named once",
    "transforms": "what several papers share of credit; `transform.py` is the type, with the order of stages",
    "ranks": "rows of a batch among processes: who has which, and how they travel",
    "losses": "what several papers share of losses; `loss.py` is the type, `head.py` that of modules trained beside",
    "objectives": "one paper, one file: its equation, its own transform or loss, the function that YAML names",
    "credit.py": "runs a chain: who is kept, what each token earned, which transform took the rest",
    "registry.py": "the names that YAML knows",
    "config": "the recipe: its keys, its file with places, the rules between keys, errors with their fix",
    "model": "a model: where it is, how it loads, its adapters, rows to input, log-probabilities",
    "data": "prompts and pairs: reading rows, chat templates, the holdout, banks",
    "learner": "the update in its DeepSpeed engine, even micro-batches, passes, weights on their way out",
    "scoring": "rewards in processes of their own, limited in time and memory",
    "environments": "environments of several turns, in both contracts, each instance in a process of its own",
    "rollout": "sampling: engines, what a step's batch comes from, the journal, the check of each sync",
    "result": "the result: its record, `verify`, its card, the push, the report",
    "checkpoint": "checkpoints that are whole, where a resumed run starts, what a run was",
    "metrics": "what a step and an evaluation measure",
    "loop.py": "the step, alone: sample, score, credit, update, sync",
    "replay.py": "recorded rollouts through objectives, without any model",
    "xray": "the page on which every token is seen: its data, its numbers, its script, the same on a terminal",
    "check": "what can go wrong, before anything is loaded",
    "run": "a run around the loop: setup, logs, evaluation, the sentinel, the end",
    "commands": "what `align COMMAND` does: annotate, compare, credit, evaluate, objectives, recipes, xray",
    "train.py": "from a recipe to a result: check, load, loop, finish",
    "__main__.py": "the command line",
}

# what a piece without a default for some key is built with, to read its place
NEEDED = {
    "keep_top": {"k": 4},
    "keep_outcome": {"outcome": "wrong"},
    "sign_filter": {"sign": "negative"},
    "max_variance_rows": {"rows": 4},
    "top_tokens": {"share": 0.2},
    "kl_policy_ref": {"coef": 0.001},
    "entropy_bonus": {"coef": 0.001},
    "mask_l1": {"reward": 0.001, "kl": 0.001},
    "best_of_n": {"n": 8},
}

REFERENCE = {"ref_logprob", "ref_kl", "reward_mask", "kl_mask"}

HEADS = {"value": "value head", "masks": "mask network"}


# Methods


def objective(name: str) -> Objective:
    """The method as its example in methods.yaml has it, without what the example adds to it."""
    spec = {key: value for key, value in yaml.safe_load(METHODS[name]["yaml"])["objective"].items() if key != "add"}
    return build_objective(spec, RecipeFile({}), ("objective",))


def needs(made: Objective) -> list[str]:
    """What a run must have for it, besides its data and its rewards."""
    heads = [HEADS[head.name] for loss in made.losses for head in loss.heads]
    return [
        *(["groups"] if any(transform.compares for transform in made.chain) else []),
        *(["`correct`"] if "correct" in made.needs else []),
        *(["entropies"] if "entropy" in made.needs else []),
        *(["reference"] if made.needs & REFERENCE else []),
        *(["guide"] if "guide_logprob" in made.needs else []),
        *dict.fromkeys(heads),
    ]


NEEDS = {
    "groups": "groups: `sampling.group_size` of 2 or more",
    "`correct`": "what counts as correct: `correct`",
    "entropies": "a pass over the kept rows for their entropies",
    "reference": "a reference",
    "guide": "a guide: `model.guide`",
    "value head": "a value head, which it trains",
    "mask network": "a mask network, which it trains",
}


def data_of(made: Objective) -> str:
    if not made.preference:
        return "prompts and rewards"
    if not made.pairs:
        return "rows with `chosen`"
    return "pairs, or rollouts with `add: [{best_and_worst: {}}]`"


def measures(made: Objective) -> list[str]:
    """The metrics that its losses write, found by calling them."""
    some, yes = torch.full((4, 3), -1.0), torch.tensor([True, False, True, False])
    known = {
        "reward": yes.float(),
        "correct": yes,
        "chosen": yes,
        "truncated": torch.zeros(4, dtype=torch.bool),
        **dict.fromkeys(("sampler_logprob", "old_logprob", "ref_logprob", "guide_logprob", "value"), some),
        **dict.fromkeys(("entropy", "reward_mask", "kl_mask"), -some),
    }
    given = {name: value for name, value in known.items() if name in made.reads}
    batch = Batch.of([0, 0, 1, 1], [[5, 6, 7]] * 4, token_text=[["a", "b", "."]] * 4, **given)
    credited = assign(made, batch, lambda batch, names, rows, reader: batch)
    now = Current(some, entropy=-some, ref_kl=-some, value=some, reward_mask=-some, kl_mask=-some)
    found = [term.loss.measure(now, credited.batch, term.token_weights) for term in credited.terms]
    return sorted({name for values in found for name in values})


def method_table() -> str:
    """All methods in one table, for README.md."""
    lines = ["| method | arXiv | needs | what it is |", "|---|---|---|---|"]
    for title, factories in (("from prompts and rewards", POLICY), ("from pairs, or rows with `chosen`", PAIRS)):
        lines.append(f"| **{title}** | | | |")
        for factory in factories:
            name = factory.__name__
            number = re.search(r"\d{4}\.\d{5}", entry(name).paper)
            cells = (
                f"[{name}](align/objectives/README.md#{name})",
                number[0] if number else "",
                ", ".join(needs(objective(name))),
                METHODS[name]["short"],
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def method_pages() -> str:
    """A section for each method, in the order of the registry."""
    shown: dict[str, str] = {}
    sections = []
    for title, factories in (("From prompts and rewards", POLICY), ("From pairs", PAIRS)):
        sections.append(f"## {title}")
        sections += [method_page(factory.__name__, shown) for factory in factories]
    return "\n\n".join(sections)


def method_page(name: str, shown: dict[str, str]) -> str:
    """`shown` remembers which method a file's equation stands under."""
    found, made, module = entry(name), objective(name), sys.modules[OBJECTIVES[name].__module__]
    summary, *rest = re.split(r"\n\n", found.text)
    body = [part for part in rest if not part.startswith("Paper:")]
    path = str(Path(module.__file__).relative_to(ROOT))
    if path in shown:
        equation = f"Its equation stands with that of [{shown[path]}](#{shown[path]})."
    else:
        equation = markdown(module.__doc__)
        shown[path] = name
    named = "; ".join([data_of(made), *[NEEDS[need] for need in needs(made)]])
    watched = [f"  - {mark(metric)}: {told.strip()}" for metric, told in METHODS[name]["watch"].items()]
    parts = [
        f"### {name}",
        inline(" ".join(summary.split())),
        equation,
        *[inline(part) for part in body],
        f"```yaml\n{METHODS[name]['yaml'].strip()}\n```",
        key_table(OBJECTIVES[name]),
        f"- **When**: {' '.join(METHODS[name]['use'].split())}",
        f"- **Needs**: {named}.",
        "\n".join(["- **Watch**:", *watched]),
        f"- **Its losses log**: {', '.join(map(mark, measures(made)))}.",
        f"- **Limit**: {inline(found.limit)}",
        f"- **Paper**: {linked(found.paper)} Code: [`{path}`]({Path(path).name}).",
    ]
    return "\n\n".join(parts[:-6]) + "\n\n" + "\n".join(parts[-6:])


def key_table(factory: Callable) -> str:
    hints = typing.get_type_hints(factory, include_extras=True)
    rows = [
        (mark(p.name), code(kind(hints[p.name])), "**needed**" if p.default is p.empty else code(plain(p.default)))
        for p in inspect.signature(factory).parameters.values()
    ]
    return table(("key", "type and range", "default"), rows)


def pieces() -> str:
    """The transforms and losses that a chain may be spelled out with."""
    out = []
    for title, known in (("transform", TRANSFORMS), ("loss", LOSSES)):
        rows = []
        for name, factory in known.items():
            made = factory(**NEEDED.get(name, {}))
            place = made.stage.name.lower() if title == "transform" else made.unit
            rows.append((mark(name), place, cell(first_sentence(factory)), ", ".join(arguments(factory)) or "none"))
        out.append(table((title, "stage" if title == "transform" else "counts", "what it does", "keys"), rows))
    return "\n\n".join(out)


def arguments(factory: Callable) -> list[str]:
    parameters = inspect.signature(factory).parameters.values()
    return [f"`{p.name}`" if p.default is p.empty else f"`{p.name}` {cell(plain(p.default))}" for p in parameters]


def first_sentence(factory: Callable) -> str:
    paragraph = " ".join(re.split(r"\n\n", inspect.getdoc(factory))[0].split())
    return re.split(r"(?<=[.:;]) (?=[A-Z`])", paragraph)[0].rstrip(":;")


# Keys of a recipe


def recipe_keys() -> str:
    """Every key, section by section."""
    sections = ["### The sections", model_table(Recipe, "")]
    for name, info in Recipe.model_fields.items():
        if name != "sentinel":
            sections += [text for path, model in nested(name, info) for text in section(path, model)]
    return "\n\n".join(sections)


def nested(path: str, info: FieldInfo) -> Iterator[tuple[str, type[BaseModel]]]:
    """(path, model) of the sections at a key and below it."""
    for model in dict.fromkeys(models_in(info.annotation)):
        if model is not FromRecipe:
            yield path, model
            for name, inner in model.model_fields.items():
                yield from nested(f"{path}.{name}", inner)


def section(path: str, model: type[BaseModel]) -> list[str]:
    intro = [inline(inspect.cleandoc(model.__doc__))] if model.__doc__ else []
    return [f"### {path}", *intro, model_table(model, f"{path}.")]


def model_table(model: type[BaseModel], prefix: str) -> str:
    hints = typing.get_type_hints(model, include_extras=True)
    rows = []
    for name, info in model.model_fields.items():
        shown = info.alias or name
        rows.append((mark(shown), code(words(hints[name])), default(info), cell(describe(f"{prefix}{shown}", info))))
    return table(("key", "type and range", "default", "what it is"), rows)


def describe(path: str, info: FieldInfo) -> str:
    """What the recipe's field says of itself, or else keys.yaml. Raises `KeyError` where neither does."""
    return info.description or KEYS[path]


def sentinel_keys() -> str:
    """The sentinel's rules with their thresholds."""
    hints = typing.get_type_hints(Sentinel, include_extras=True)
    actions = words(typing.get_type_hints(Rule)["action"])
    rows = [(mark("RULE.action"), code(actions), code(Rule.model_fields["action"].default), "see below")]
    for name, info in Sentinel.model_fields.items():
        if not of_rule(info):
            rows.append((mark(name), code(words(hints[name])), default(info), cell(info.description)))
            continue
        inner = typing.get_type_hints(info.annotation, include_extras=True)
        for key, field in info.annotation.model_fields.items():
            if key != "action":
                row = (mark(f"{name}.{key}"), code(words(inner[key])), default(field), cell(field.description))
                rows.append(row)
    return table(("key", "type and range", "default", "what it is"), rows)


def of_rule(info: FieldInfo) -> bool:
    return inspect.isclass(info.annotation) and issubclass(info.annotation, Rule)


def words(hint: Any) -> str:
    """A type in words, a section by name."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is FromRecipe:
        return "{from: RECIPE}"
    if inspect.isclass(hint) and issubclass(hint, BaseModel):
        return "section"
    if origin is typing.Annotated:
        return words(parts[0]) + kind(hint).removeprefix(kind(parts[0]))  # with the ranges that follow the type
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(words, parts))
    if origin is list:
        return f"list of {words(parts[0])}"
    if origin is dict:
        return f"{{name: {words(parts[1])}}}"
    return {Any: "value"}.get(hint) or kind(hint)


def default(info: FieldInfo) -> str:
    if info.is_required():
        return "**needed**"
    value = info.get_default(call_default_factory=True)
    return "its defaults" if isinstance(value, BaseModel) else code(plain(value))


# Folders


def folders() -> str:
    """Every folder of the package in a line, with its files. Raises `KeyError` for one without a description."""
    there = {path.name for path in (ROOT / "align").iterdir() if list(path.glob("*.py")) or path.suffix == ".py"}
    rooms = {name for name in there if not name.startswith("__init__")}
    if rooms != set(FOLDERS):
        raise KeyError(f"FOLDERS of {__file__} and align/ differ: {sorted(rooms ^ set(FOLDERS))}")
    rows = []
    for name, told in FOLDERS.items():
        files = sorted(path.name for path in (ROOT / "align" / name).glob("*.py") if path.name != "__init__.py")
        rows.append((mark(f"{name}/" if files else name), told, ", ".join(map(mark, files))))
    return table(("where", "what it is", "files"), rows)


# Memory


def fit_table() -> str:
    """What two models take, by kind of training, ZeRO and number of GPUs."""
    from support import shapes

    head = ("model", "trained", "ZeRO", *(f"{n} GPU{'s' if n > 1 else ''}" for n in shapes.GPUS))
    rows = [
        (name, "LoRA" if lora else "all", str(zero), *(shapes.cell(name, lora, zero, gpus) for gpus in shapes.GPUS))
        for name, lora, zero in itertools.product(shapes.MODELS, (True, False), (2, 3))
    ]
    return table(head, rows)


def fit_ways() -> str:
    """The keys that make fit what does not."""
    from support import shapes

    rows = []
    for name, lora, zero, gpus in shapes.TOO_LARGE:
        told = shapes.problem(name, lora, zero, gpus).partition("it would fit with ")[2]
        keys = re.sub(r"[a-z_]+\.[a-z_]+: \w+|num_processes: \w+", lambda found: mark(found[0]), told)
        rows.append((f"{name}, {'LoRA' if lora else 'all weights'}, ZeRO-{zero}, {gpus} GPUs", keys))
    return table(("run", "fits with (GiB of a GPU at the peak)"), rows)


# Markdown


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return "No keys."
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def mark(text: str) -> str:
    return f"`{text}`"


def code(text: str) -> str:
    """A code span inside a table."""
    return mark(cell(text))


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def plain(value: Any) -> str:
    """A default as YAML writes it."""
    if isinstance(value, float) and math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    if isinstance(value, (tuple, list)):
        return json.dumps(value)
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("\n...\n").strip()


EQUATION = re.compile(r"  |[a-z_]+(\[\w+\])?(, \w+)* \+?= ")  # how each line of one begins: indented, or with a name


def markdown(text: str) -> str:
    """The docstring of a method's file as Markdown: equations are code, the rest is prose."""
    out: list[list[str]] = []
    for block in re.split(r"\n\n+", text.strip("\n")):
        if all(EQUATION.match(line) for line in block.splitlines()):
            dedented = inspect.cleandoc("\n" + block)
            if out and out[-1][0] == "code":
                out[-1][1] += f"\n\n{dedented}"
            else:
                out.append(["code", dedented])
        else:
            out.append(["prose", inline(block)])
    return "\n\n".join(f"```text\n{text}\n```" if kind == "code" else text for kind, text in out)


def inline(text: str) -> str:
    """Prose as Markdown."""
    return linked(escaped(text))


def escaped(text: str) -> str:
    """Prose in which no star and no angle bracket outside code is read as markup."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*<])", r"\\\1", part) for part in parts)


def linked(text: str) -> str:
    """The same with arXiv numbers as links."""
    return re.sub(r"\b(\d{4}\.\d{5})\b", r"[\1](https://arxiv.org/abs/\1)", text)


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"methods": method_table},
    "align/README.md": {"folders": folders},
    "align/objectives/README.md": {"methods": method_pages, "pieces": pieces},
    "align/check/README.md": {"fit": fit_table, "ways": fit_ways},
    "align/config/README.md": {"keys": recipe_keys, "sentinel": sentinel_keys},
}


def render(page: str) -> str:
    """The page with its parts as the code has them now. Raises `ValueError` where a mark of a part is missing."""
    text = (ROOT / page).read_text()
    for name, make in PARTS[page].items():
        start, end = f"<!-- {name}: written by tests/support/pages.py -->", f"<!-- end of {name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"{page}: needs {start} and {end} once each")
        before, rest = text.split(start)
        text = f"{before}{start}\n\n{make()}\n\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))  # as for pytest
    for page in PARTS:
        (ROOT / page).write_text(render(page))
