"""A healthy recipe with the tiny model, and the bench where tests/check/test_broken_inputs.py breaks it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from align.check.report import checkup
from support import tiny_model

AT = r"recipe\.yaml:\d+: "  # where a message places a key

REWARDS = """
from rewards import text

def fine(completions, *, answer, **columns):
    return [float(text(c) == gold) for c, gold in zip(completions, answer, strict=True)]

def wants_solution(completions, *, solution, **columns):
    return [0.0] * len(completions)

def closed(completions, prompts):
    return [0.0] * len(completions)

def one_number(completions, **columns):
    return 1.0

def too_few(completions, **columns):
    return [1.0]

def text_out(completions, **columns):
    return ["good"] * len(completions)

def not_a_number(completions, **columns):
    return [float("nan")] * len(completions)

def raises(completions, **columns):
    raise KeyError("score")

def indexes(completions, **columns):
    return [float(text(c)[0] == "7") for c in completions]

def digits(completions, **columns):
    return [float(int(text(c))) if text(c).isdigit() else 0.0 for c in completions]

def long_ones(completions, **columns):
    return [1.0 / max(0, 10_000 - len(text(c))) for c in completions]

async def waits_for_nothing(completions, **columns):
    raise ConnectionError("no judge at this address")

def scaled(completions, *, factor, **columns):
    return [factor * 1.0] * len(completions)

def tells(completions, *, api_key, **columns):
    raise RuntimeError("401 with key " + api_key)

def by_place(completions, /, **columns):
    return [0.0] * len(completions)

def huge(completions, **columns):
    return [1e39] * len(completions)

def lowers(completions, **columns):
    return [float(c.lower() == "yes") for c in completions]

number = 3
"""
TELLS = "corpus_rewards:tells"


def prompts(count: int = 8) -> list[dict]:
    return [{"prompt": [{"role": "user", "content": f"{i}+1?"}], "answer": str(i + 1)} for i in range(count)]


def pairs(count: int = 8) -> list[dict]:
    return [{"prompt": f"{i}+1?", "chosen": str(i + 1), "rejected": "no idea"} for i in range(count)]


def recipe() -> dict:
    return {
        "model": {"policy": "model", "adapter": {"rank": 2, "alpha": 4.0, "targets": "all-linear"}},
        "data": {"prompts": "prompts.jsonl", "holdout": 2, "prompts_per_step": 2, "max_prompt_tokens": 64},
        "sampling": {"group_size": 4, "max_response_tokens": 16},
        "rewards": [{"fn": "corpus_rewards:fine", "weight": 1.0}],
        "objective": {"name": "gfpo", "k": 2},
        "optim": {"lr": 0.01},
        "eval": {"samples": 2},
        "run": {"steps": 2, "out": "runs/corpus"},
    }


@dataclass
class Bench:
    """A folder with a healthy recipe and its files; each method breaks something. Paths are relative to it."""

    root: Path
    recipe: dict = field(default_factory=recipe)
    launch: dict | None = None
    text: str | None = None  # instead of the recipe

    def put(self, key: str, value: Any) -> None:
        """Set a dotted key of the recipe."""
        *path, last = key.split(".")
        here = self.recipe
        for part in path:
            here = here.setdefault(part, {})
        here[last] = value

    def drop(self, key: str) -> None:
        *path, last = key.split(".")
        here = self.recipe
        for part in path:
            here = here[part]
        del here[last]

    def write(self, name: str, content: str | bytes) -> None:
        (self.root / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    def rows(self, rows: list, name: str = "prompts.jsonl") -> None:
        self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def row(self, change: dict, at: int = 3) -> None:
        """Change one row of the prompts."""
        self.rows([row | change if i == at else row for i, row in enumerate(prompts())])

    def learns_from_pairs(self, rows: list | None = None) -> None:
        self.recipe |= {"data": {"pairs": "pairs.jsonl", "prompts_per_step": 2}, "objective": {"name": "dpo"}}
        self.recipe.pop("rewards")
        self.rows(pairs() if rows is None else rows, "pairs.jsonl")

    def pair(self, change: dict, at: int = 3) -> None:
        """Learn from pairs, one of which is changed."""
        self.learns_from_pairs([row | change if i == at else row for i, row in enumerate(pairs())])

    def reward(self, name: str, **rest: Any) -> None:
        self.recipe["rewards"] = [{"fn": name, **rest}]

    def guided(self) -> None:
        """TGDPO with the guide at `guide`."""
        self.learns_from_pairs()
        self.put("objective", {"name": "tgdpo"})
        self.put("model.guide", "guide")

    def file(self, name: str, **changes: Any) -> None:
        """Change keys of a JSON file; None takes one out."""
        content = json.loads((self.root / name).read_text()) | changes
        self.write(name, json.dumps({key: value for key, value in content.items() if value is not None}))

    def cut(self, name: str, share: float = 0.5) -> None:
        content = (self.root / name).read_bytes()
        self.write(name, content[: int(len(content) * share)])

    def remove(self, name: str) -> None:
        (self.root / name).unlink()

    def checked(self) -> dict:
        """What `python -m align check` says, called from the folder."""
        self.write("recipe.yaml", self.text if self.text is not None else yaml.safe_dump(self.recipe, sort_keys=False))
        launch = None
        if self.launch is not None:
            self.write("launch.yaml", yaml.safe_dump(self.launch))
            launch = Path("launch.yaml")
        return checkup(Path("recipe.yaml"), (), launch)


def healthy(root: Path) -> Path:
    """Write the files of a healthy recipe to a folder."""
    tiny_model.save_model(root / "model")
    tiny_model.save_guide(root / "model", root / "guide")
    config = root / "guide/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "model"}))
    (root / "corpus_rewards.py").write_text(REWARDS)
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts()))
    return root


def bench(template: Path, root: Path) -> Bench:
    shutil.copytree(template, root, dirs_exist_ok=True)
    return Bench(root)


def put(key: str, value: Any) -> Callable[[Bench], None]:
    """A defect: one key of the recipe."""
    return lambda bench: bench.put(key, value)


def facts(bench, **changes):
    bench.launch = {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"zero_stage": changes.get("stage", 0)},
        "num_processes": changes.get("processes", 1),
    }
    result = bench.checked()
    assert result["ok"], result["problems"]
    return result["facts"]
