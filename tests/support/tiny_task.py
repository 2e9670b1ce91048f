"""A task that a random character model can learn in a few steps: answer in digits."""

import os
import random
import time
from pathlib import Path

import yaml


def prompts(count=12):
    return [{"prompt": [{"role": "user", "content": f"Write {i} digits."}]} for i in range(count)]


def pairs(count=16):
    """Digits are preferred to letters."""
    letters = "abcdefghij"
    return [
        {
            "prompt": row["prompt"],
            "chosen": [{"role": "assistant", "content": f"{i % 10}{i % 7}{i % 3}"}],
            "rejected": [{"role": "assistant", "content": letters[i % 10] * (1 + i % 4)}],
        }
        for i, row in enumerate(prompts(count))
    ]


def digits(prompts, completions, completion_ids, **columns):
    """Share of the characters that are digits."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(c.isdigit() for c in text) / max(len(text), 1) for text in texts]


class Digits:
    """An environment, in the contract of text: answer in digits, two or three times."""

    def reset(self, seed=0, **row):
        self.left, self.said = 2 + seed % 2, random.choice("abc")
        return f"Digits {self.said}.", {"anchor": "start"}

    def step(self, action):
        self.left -= 1
        share = sum(c.isdigit() for c in action) / max(len(action), 1)
        return "More.", share, self.left == 0, False, {"success": share > 0.5, "anchor": f"{share:.1f}"}


class Faulty(Digits):
    """Fails in another way for each seed."""

    def reset(self, seed=0, **row):
        self.seed = seed % 8
        if self.seed == 6:
            raise ValueError("no start")
        return super().reset(**row)

    def step(self, action):
        faults = {
            1: lambda: 1 / 0,
            2: lambda: time.sleep(1000),
            3: lambda: os._exit(3),
            4: lambda: ("y" * 2**21, 0.0, False, False, {}),
            5: lambda: ("", "much", False, False, {}),
            7: lambda: os.kill(os.getpid(), 9),
        }
        return faults.get(self.seed, lambda: super(Faulty, self).step(action))()


RECIPE = """
model: {{policy: "{folder}"{adapter}}}
data: {{prompts: "support.tiny_task:prompts", holdout: 4, prompts_per_step: 4}}
sampling: {{group_size: 4, temperature: 0.7, max_response_tokens: 12, cache_gib: 0.25, compile: false}}
rewards: {{"support.tiny_task:digits": 1.0}}
objective: {{name: gfpo, k: 3}}
optim: {{lr: 0.01, micro_batch_tokens: 200}}
eval: {{samples: 2}}
run: {{steps: 4, out: "{out}"}}
"""

EPISODES = {
    "model": {"adapter": {"rank": 4, "alpha": 8}},
    "data": {"episodes": 12, "holdout": 4, "prompts_per_step": 4, "max_prompt_tokens": 90},
    "environment": {"name": "support.tiny_task:Digits", "max_turns": 3, "seconds": 60},
    "sampling": {
        "group_size": 4,
        "max_response_tokens": 150,
        "max_turn_tokens": 6,
        "cache_gib": 0.25,
        "compile": False,
    },
    "objective": {"chain": [{"turn_returns": {}}, {"anchor_advantage": {}}], "loss": {"clipped_surrogate": {}}},
    "optim": {"lr": 0.01, "micro_batch_tokens": 800},
    "eval": {"samples": 2},
    "run": {"steps": 3},
}


def episodes(folder: Path, out: Path, **sections: dict) -> Path:
    """A recipe of episodes in the folder `out`, which its run is written to, with keys of some sections changed."""
    whole = {**EPISODES, **{name: EPISODES.get(name, {}) | section for name, section in sections.items()}}
    whole["model"] = {"policy": str(folder), **whole["model"]}
    whole["run"] = {"out": str(out / "run"), **whole["run"]}
    path = out / "recipe.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path
