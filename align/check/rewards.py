"""Try rewards before a run: on rows of the data with the responses that they bring along, and on hostile strings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from align.config.factories import load_object
from align.config.recipe import RewardFunction, RewardLimits
from align.data.prompts import Pair, Prompt, Response
from align.scoring.process import Failure, Value, too_slow
from align.scoring.score import arguments_of, call_worker, one_by_one
from align.scoring.worker import RewardError, Worker

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
    """The outcome of trying a reward."""

    problems: tuple[str, ...] = ()  # with these no response would get a reward
    doubts: tuple[str, ...] = ()  # it fails on some texts: in training such rows are masked
    means: Mapping[str, float] = field(default_factory=dict)  # {kind of response: mean reward where it applied}


def try_reward(
    reward: RewardFunction, limits: RewardLimits, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase
) -> Trial:
    """Call a reward as training does, on the first few prompts, with responses that no model wrote."""
    problem = columns_problem(reward, prompts)
    if problem:
        return Trial((problem,))
    worker = Worker(reward, limits)
    try:
        worker.wait()
        return _tried(worker, prompts, tokenizer)
    except RewardError as error:
        return Trial((str(error),))
    finally:
        worker.close()


def offers(prompts: Sequence[Prompt]) -> dict[str, list[tuple[Prompt, str]]]:
    """{kind of response: [(prompt, response)]}: a placeholder, texts of the row itself, hostile strings."""
    out = {"placeholder": [(prompt, PLACEHOLDER) for prompt in prompts[:ROWS]]}
    for prompt in prompts[:ROWS]:
        for name, text in answers(prompt).items():
            out.setdefault(name, []).append((prompt, text))
    return out | {"hostile text": [(prompts[0], text) for text in HOSTILE]}


def values_of(
    worker: Worker, rows: Sequence[tuple[Prompt, str]], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Value], str]:
    """(values of the rows, where the first failure is).

    Where the call failed as a whole, rows are called alone, up to the first that takes too long.
    """
    prompts, texts = [prompt for prompt, _ in rows], [text for _, text in rows]
    ids = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    responses = [Response(tokens, [0.0] * len(tokens), truncated=False) for tokens in ids]
    arguments = arguments_of(prompts, responses, texts)
    answer = call_worker(worker, arguments, len(rows))
    values = answer
    if isinstance(answer, Failure):
        values = []
        for value in one_by_one(worker, arguments, len(rows)):
            values.append(value)
            if value == too_slow(worker.limits.seconds):
                break
    at = next((row for row, value in enumerate(values) if isinstance(value, Failure)), None)
    if at is not None:
        return values, f"on row {at}: {texts[at][:200]!r}"
    return ([answer], "on the batch as a whole") if isinstance(answer, Failure) else (values, "")


def answers(prompt: Prompt) -> dict[str, str]:
    """{column: text} of a row that can stand for a response."""
    if isinstance(prompt, Pair):
        return {name: answer.text for name, answer in zip(("chosen", "rejected"), prompt.answers, strict=False)}
    return {name: value for name, value in prompt.columns.items() if isinstance(value, str)}


def columns_problem(reward: RewardFunction, prompts: Sequence[Prompt]) -> str | None:
    """Say which parameter of the function and column of the data do not fit; None where all do."""
    columns = {name for prompt in prompts for name in prompt.columns}
    try:
        parameters = inspect.signature(load_object(reward.path)).parameters.values()
    except (TypeError, ValueError):  # written in C: the call will tell
        return None
    given = {*GIVEN, *columns, *reward.args}
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    lacking = [p.name for p in named if p.default is p.empty and p.name not in given]
    if lacking:
        there = ", ".join(sorted(map(str, columns)))
        what = f"needs {lacking[0]!r}, which is no column of the data (there are: {there})"
        return f"reward {reward.name!r} {what}; rename a column, or give it as args: {{{lacking[0]}: ...}}"
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    beyond = sorted(given - {p.name for p in named})
    if beyond and not open_ended:
        return f"reward {reward.name!r} is called with {beyond[0]!r}, which it does not take; add **columns to it"
    return None


def _tried(worker: Worker, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> Trial:
    """The outcome with the function loaded."""
    first, rated, means = None, False, {}
    for name, rows in offers(prompts).items():
        values, where = values_of(worker, rows, tokenizer)
        numbers = [value for value in values if isinstance(value, float)]
        means |= {name: sum(numbers) / len(numbers)} if numbers else {}
        rated = rated or any(not isinstance(value, Failure) for value in values)
        failed = next((value for value in values if isinstance(value, Failure)), None)
        if failed and first is None:
            what = f"reward {worker.reward.name!r} failed: {failed.why} ({where}); tried with {name}"
            first = f"{what}; return a number or None instead"
        if failed == too_slow(worker.limits.seconds):
            return Trial(doubts=(first,), means=means)  # the rest may take as long
    if first is None:
        return Trial(means=means)
    return Trial(doubts=(first,), means=means) if rated else Trial((first,), means=means)
