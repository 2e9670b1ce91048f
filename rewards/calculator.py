"""Sums that a small model cannot do by heart, and a tool that can: an environment in TRL's contract, with its rows."""

import random
import re

SYSTEM = "You add numbers with a tool, then say the sum."

INTEGER = re.compile(r"[0-9]+")

LARGEST = 10**9  # of a number that the tool takes


class Calculator:
    """One tool, `add`. The reward is 1 where all calls could be run and the last one was about the row's numbers.

    It says whether the tool was used well, not whether the answer is right: environments of TRL do not see the last
    message, so that is for `correct`.
    """

    def reset(self, a: int, b: int, **row) -> None:
        """Begin; the question stands in the row's prompt."""
        self.calls, self.refused, self.used = 0, 0, False
        self._numbers = sorted([a, b])

    def add(self, a: int, b: int) -> int:
        """Add two whole numbers.

        Args:
            a: The first number.
            b: The second number.
        """
        self.calls += 1
        self.refused += 1
        for value in (a, b):
            if type(value) is not int or abs(value) > LARGEST:
                raise ValueError("a and b must be whole numbers")
        self.refused -= 1
        self.used = sorted([a, b]) == self._numbers
        return a + b

    def get_reward(self) -> float:
        """Whether the tool was used well."""
        return float(self.used and not self.refused)


def correct(prompts, completions, completion_ids, *, answer, **columns):
    """Score episodes: 1.0 where the last message is the policy's and its last number is the answer, else 0.0."""
    return [float(_said(completion) == gold) for completion, gold in zip(completions, answer, strict=True)]


def questions(*, size: int, seed: int = 0) -> list[dict]:
    """Return `size` rows with `prompt`, `answer`, `a` and `b`: distinct sums of two numbers from 100 to 999."""
    if not 1 <= size <= 10**5:
        raise ValueError(f"size must be from 1 to {10**5}, not {size}")
    drawn = random.Random(f"calculator-{seed}").sample(range(900**2), size)
    return [_row(100 + number // 900, 100 + number % 900) for number in drawn]


def episodes(*, size: int, seed: int = 0) -> list[dict]:
    """Return rows of `questions` with `chosen` and `tools`: what a policy that knows the tool would do, to begin with
    supervised fine-tuning. They are rendered as episodes in `Calculator` are."""
    from align.environments.tools import schemas  # imports transformers

    tools = schemas(Calculator())
    return [{**row, "chosen": _played(row), "tools": tools} for row in questions(size=size, seed=seed)]


def _row(a: int, b: int) -> dict:
    asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"What is {a} + {b}?"}]
    return {"prompt": asked, "answer": str(a + b), "a": a, "b": b}


def _played(row: dict) -> list[dict]:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": row["a"], "b": row["b"]}}}
    return [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "add", "content": row["answer"]},
        {"role": "assistant", "content": row["answer"]},
    ]


def _said(completion: list[dict]) -> str | None:
    """The last number of an episode's last message; None where it has none, or is not the policy's answer."""
    last = completion[-1] if completion else {}
    numbers = INTEGER.findall(last.get("content") or "")
    answered = last.get("role") == "assistant" and not last.get("tool_calls")
    return numbers[-1].lstrip("0") if answered and numbers else None
