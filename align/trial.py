"""Rewards tried before a run: on rows of the data with the answers that they bring along, and on hostile strings."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from transformers import PreTrainedTokenizerBase

from align import scoring
from align.config import RewardFunction
from align.data import Pair, Prompt
from align.generator import Response
from align.scoring import RewardError

ROWS = 3  # of the data
GIVEN = {"prompts", "completions", "completion_ids", "truncated"}  # what every reward is called with
PLACEHOLDER = "The answer is 42."
HOSTILE = (
    "",
    " \n\t ",
    "word " * 4000,
    "9" * 5000,  # int() refuses it
    "1e999 nan inf -inf",
    "9**9**9**9",
    "7\0",
    "\u0661\u2462\u00bd \u202e \U0001f600 \ufffd",  # digits that int() takes or refuses, right to left, an emoji
    r"\boxed{\frac{1}{",
    r"\boxed{" * 300 + "7" + "}" * 300,
    "((((" * 300 + "[[[[" * 300,
    "__import__('os').getcwd()",
    "<answer>7</answer><answer>",
    '{"answer": [7, {}',
)


@dataclass(frozen=True)
class Trial:
    """What came of a reward's trial."""

    problems: list[str]
    means: dict[str, float]  # what was offered -> mean reward, where it applied


def try_reward(reward: RewardFunction, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase | None) -> Trial:
    """Call it as training does, with texts that no model wrote. The rows are the first ones of a source."""
    problem = columns_problem(reward, prompts)
    if problem:
        return Trial([problem], {})
    problems, means = {}, {}  # of one that fails on everything in the same way, one problem
    offered = {"placeholder": [(prompt, PLACEHOLDER) for prompt in prompts[:ROWS]]}
    for prompt in prompts[:ROWS]:
        for name, text in answers(prompt).items():
            offered.setdefault(name, []).append((prompt, text))
    offered["hostile text"] = [(prompts[0], text) for text in HOSTILE]
    for name, rows in offered.items():
        try:
            values = [value for value in _scored(reward, rows, tokenizer) if value is not None]
            means |= {name: fmean(values)} if values else {}
        except RewardError as error:
            what = f"{error}; tried with {name} on {rows[0][0].text[:60]!r}; return a number or None instead"
            problems.setdefault(str(error).partition(" (on ")[0], what)
    return Trial(list(problems.values()), means)


def answers(prompt: Prompt) -> dict[str, str]:
    """{column: text} of what the row itself offers as a response."""
    if isinstance(prompt, Pair):
        return {name: answer.text for name, answer in zip(("chosen", "rejected"), prompt.answers, strict=False)}
    return {name: value for name, value in prompt.columns.items() if isinstance(value, str)}


def _scored(
    reward: RewardFunction, rows: Sequence[tuple[Prompt, str]], tokenizer: PreTrainedTokenizerBase | None
) -> list[float | None]:
    prompts, texts = [prompt for prompt, _ in rows], [text for _, text in rows]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    responses = [Response(tokens, [0.0] * len(tokens), truncated=False) for tokens in ids]
    return scoring.score([reward], prompts, responses, texts)[reward.name]


def columns_problem(reward: RewardFunction, prompts: Sequence[Prompt]) -> str | None:
    """What is wrong between the function's parameters and the columns of the data."""
    columns = {name for prompt in prompts for name in prompt.columns}
    try:
        parameters = inspect.signature(reward.fn).parameters.values()
    except (TypeError, ValueError):  # written in C: the call will tell
        return None
    given = {*GIVEN, *columns, *reward.args}
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    lacking = [p.name for p in named if p.default is p.empty and p.name not in given]
    if lacking:
        what = f"needs {lacking[0]!r}, which is no column of the data (there are: {', '.join(sorted(columns))})"
        return f"reward {reward.name!r} {what}; rename a column, or give it as args: {{{lacking[0]}: ...}}"
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    beyond = sorted(given - {p.name for p in named})
    if beyond and not open_ended:
        return f"reward {reward.name!r} is called with {beyond[0]!r}, which it does not take; add **columns to it"
    return None
