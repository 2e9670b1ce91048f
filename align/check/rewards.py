"""Try rewards before a run: on rows of the data with the responses that they bring along, and on hostile strings."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from inspect import Parameter

from transformers import PreTrainedTokenizerBase

from align.config.problems import nearest
from align.config.recipe import RewardFunction, RewardLimits
from align.config.recipe_file import RecipeFile
from align.data.prompts import Episode, Pair, Prompt, Response
from align.scoring.process import Argument, Failure, Value, too_slow
from align.scoring.score import arguments_of, call_worker, one_by_one
from align.scoring.worker import RewardError, Worker, close

ROWS = 3  # of the data

GIVEN = {"prompts", "completions", "completion_ids", "truncated"}  # what every reward is called with

# {what an error of a reward says: how to mend it}
FIXES = {
    r"'list' object|got '?list|not list|, not 'list'": "a completion is a list of messages where prompts are: take"
    " rewards.text(completion), or return None",
    r"NoneType": "a column is None in rows that lack it: return None there",
    r"^(ModuleNotFound|Import)Error": "install what it imports where the run is",
    r"^(Connection|Timeout|HTTP|SSL)\w*Error|^URLError": "let it reach what it asks, or return None where it cannot",
    r"^PermissionError|^FileNotFoundError": "give the file where the run starts, or its whole path",
    r"(^|raised )SystemExit|its process left": "let it raise an error instead of ending the process",
    r"its process died": "keep what crashes out of it; its rows would be masked",
    r"unexpected keyword": "add **columns to the function that raised",
}

OTHERWISE = "mend it, or return a number or None instead"

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
    notes: tuple[str, ...] = ()  # what its `ready` says of this machine


@contextmanager
def started(rewards: Sequence[RewardFunction], limits: RewardLimits) -> Iterator[list[Worker]]:
    """The processes of rewards that are to be tried; they load side by side."""
    workers = [Worker(reward, limits) for reward in rewards]
    try:
        yield workers
    finally:
        close(workers)


def try_reward(
    worker: Worker,
    prompts: Sequence[Prompt],
    columns: Collection[str],
    tokenizer: PreTrainedTokenizerBase,
    file: RecipeFile,
    episodes: Mapping[str, Episode],
) -> Trial:
    """Call a reward as training does, on the first few prompts, with responses that no model wrote; without prompts it
    is only loaded. Its parameters are looked at before: `columns` are those of all rows. `episodes` are those that were
    tried, {environment: one}."""
    reward = worker.reward
    try:
        worker.wait()
        notes = tuple(f"reward {reward.name!r}: {note}" for note in worker.ready.notes)
        always = GIVEN | ({"environments"} if episodes else set())
        problems = parameter_problems(reward, worker.ready.parameters, columns, file, always) if prompts else []
        if problems or not prompts:
            return Trial(tuple(problems), notes=notes)
        found = _tried(worker, prompts, tokenizer, episodes)
        problems, doubts = (
            [file.problem(reward.key, text) for text in texts] for texts in (found.problems, found.doubts)
        )
        return Trial(tuple(problems), tuple(doubts), found.means, notes)
    except RewardError as error:
        return Trial((file.problem(reward.key, with_fix(str(error))),))


def offers(prompts: Sequence[Prompt]) -> dict[str, list[tuple[Prompt, str]]]:
    """{kind of response: [(prompt, response)]}: a placeholder, texts of the row itself, hostile strings."""
    out = {"placeholder": [(prompt, PLACEHOLDER) for prompt in prompts[:ROWS]]}
    for prompt in prompts[:ROWS]:
        for name, text in answers(prompt).items():
            out.setdefault(name, []).append((prompt, text))
    return out | {"hostile text": [(prompts[0], text) for text in HOSTILE]}


def values_of(
    worker: Worker,
    rows: Sequence[tuple[Prompt, str]],
    tokenizer: PreTrainedTokenizerBase,
    episodes: Mapping[str, Episode],
) -> tuple[list[Value], str]:
    """(values of the rows, where the first failure is).

    Where the call failed as a whole, rows are called alone, up to the first that takes too long.
    """
    prompts, texts = [prompt for prompt, _ in rows], [text for _, text in rows]
    ids = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    responses = [
        Response(tokens, [0.0] * len(tokens), truncated=False, episode=_said_last(prompt, text, episodes))
        for prompt, tokens, text in zip(prompts, ids, texts, strict=True)
    ]
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
        return values, f"on row {at + 1}: {texts[at][:200]!r}"
    return ([answer], "on the batch as a whole") if isinstance(answer, Failure) else (values, "")


def _said_last(prompt: Prompt, text: str, episodes: Mapping[str, Episode]) -> Episode | None:
    """The episode that was tried of the prompt's environment, in which the policy says this last."""
    if not episodes:
        return None
    episode = episodes.get(prompt.columns.get("environment")) or next(iter(episodes.values()))
    return replace(episode, messages=[*episode.messages, {"role": "assistant", "content": text}])


def answers(prompt: Prompt) -> dict[str, str]:
    """{column: text} of a row that can stand for a response."""
    if isinstance(prompt, Pair):
        return {name: answer.text for name, answer in zip(("chosen", "rejected"), prompt.answers, strict=False)}
    return {name: value for name, value in prompt.columns.items() if isinstance(value, str)}


def parameter_problems(
    reward: RewardFunction,
    parameters: Sequence[Argument],
    columns: Collection[str],
    file: RecipeFile,
    always: Collection[str],
) -> list[str]:
    """What of the function's parameters, the recipe's arguments and the columns of the data does not fit; it is called
    with those in `always`, whatever the data."""
    given = {*always, *columns, *reward.args}
    named = [p for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    names = {p.name for p in named}
    out = _unknown(reward, names, columns, file)
    if out:
        return out
    lacking = [p.name for p in named if p.required and p.name not in given]
    if lacking:
        there = ", ".join(sorted(columns))
        what = f"needs {lacking[0]!r}, which is no column of the data (there are: {there})"
        fix = f"rename a column, or give it as args: {{{lacking[0]}: ...}}"
        return [file.problem(reward.key, f"reward {reward.name!r} {what}; {fix}")]
    by_place = [p.name for p in parameters if p.kind == Parameter.POSITIONAL_ONLY and p.required]
    if by_place:
        what = f"takes {by_place[0]!r} by its place only, and is called by names; take the / out of its parameters"
        return [file.problem(reward.key, f"reward {reward.name!r} {what}")]
    beyond = sorted(given - names)
    if beyond and not any(p.kind == Parameter.VAR_KEYWORD for p in parameters):
        what = f"is called with {beyond[0]!r}, which it does not take; add **columns to it"
        return [file.problem(reward.key, f"reward {reward.name!r} {what}")]
    return []


def _unknown(reward: RewardFunction, names: Collection[str], columns: Collection[str], file: RecipeFile) -> list[str]:
    """Arguments of the recipe that are neither parameters nor columns: `**columns` would swallow them."""
    own = {*names, *columns} - GIVEN
    fixes = {name: nearest(name, own) if own else "it takes none" for name in reward.args}
    return [
        file.problem((*reward.key[:-1], "args", name), f"reward {reward.name!r} has no argument {name!r}; {fix}")
        for name, fix in fixes.items()
        if name not in {*own, *GIVEN}
    ]


def with_fix(why: str, otherwise: str | None = None) -> str:
    """What a reward failed of, with how to mend it where that does not stand there yet."""
    found = (fix for said, fix in FIXES.items() if re.search(said, why))
    fix = None if "; raise " in why or "; return " in why else next(found, otherwise)
    return f"{why}; {fix}" if fix else why


def _tried(
    worker: Worker, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, episodes: Mapping[str, Episode]
) -> Trial:
    """The outcome with the function loaded."""
    first, rated, means = None, False, {}
    for name, rows in offers(prompts).items():
        values, where = values_of(worker, rows, tokenizer, episodes)
        numbers = [value for value in values if isinstance(value, float)]
        means |= {name: sum(numbers) / len(numbers)} if numbers else {}
        rated = rated or any(not isinstance(value, Failure) for value in values)
        failed = next((value for value in values if isinstance(value, Failure)), None)
        if failed and first is None:
            what = f"reward {worker.reward.name!r} failed: {with_fix(failed.why, OTHERWISE)}"
            first = f"{what} ({where}; tried with {name})"
        if failed == too_slow(worker.limits.seconds):
            return Trial(doubts=(first,), means=means)  # the rest may take as long
    if first is None:
        return Trial(means=means)
    return Trial(doubts=(first,), means=means) if rated else Trial((first,), means=means)
