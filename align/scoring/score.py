"""Score responses: reward functions get TRL's arguments, each in its own process, and their values are summed."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from align.config.recipe import RewardFunction, RewardLimits
from align.data.prompts import POLICY, Prompt, Response
from align.scoring.process import LARGEST, Arguments, Failure, Value, row_of, rows_of
from align.scoring.worker import RewardError, Worker


def text_of(prompt: Prompt, text: str) -> Any:
    """A response as reward functions get it: text, or of a conversation a list with one assistant message."""
    return [{"role": "assistant", "content": text}] if prompt.conversational else text


def completion_of(prompt: Prompt, response: Response, text: str) -> Any:
    """A response as reward functions get it; an episode as the list of its messages, or what the policy said in it."""
    if response.episode is None:
        return text_of(prompt, text)
    messages = response.episode.messages
    return messages if prompt.conversational else "".join(m["content"] for m in messages if m["role"] == POLICY)


def score_rows(
    workers: Sequence[Worker],
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    texts: Sequence[str],
    total_rows: int,
) -> dict[str, list[Value]]:
    """{reward: one value a row}: a number, None where it does not apply, or a `Failure`.

    Each reward has as many workers, which share its rows, a run of them each. `total_rows` are those of all ranks
    together.
    Raises `RewardError` as soon as a reward has failed on more than the fraction `reward_limits.max_failed` of them.
    """
    if not prompts:
        return {worker.reward.name: [] for worker in workers}
    arguments, teams = arguments_of(prompts, responses, texts), {}
    for worker in workers:
        teams.setdefault(worker.reward.name, []).append(worker)
    parts = shares(len(prompts), max(map(len, teams.values()), default=1))
    messages = [_packed(rows_of(arguments, rows), len(rows)) for rows in parts]
    for team in teams.values():  # they work side by side
        for worker, message, rows in zip(team, messages, parts, strict=False):
            worker.ask(message, len(rows))
    return {name: _values(team, parts, arguments, total_rows) for name, team in teams.items()}


def shares(rows: int, processes: int) -> list[range]:
    """Runs of rows, at most one for each process, whose lengths differ by 1 at most."""
    count = min(rows, processes)
    ends = [rows * i // count for i in range(count + 1)]
    return [range(start, end) for start, end in zip(ends, ends[1:], strict=False)]


def combine(rewards: Sequence[RewardFunction], values: Mapping[str, Sequence[Value]]) -> list[float | None]:
    """Sum the weighted rewards that apply to each row; None where none does, or where one failed."""
    out = []
    for row in zip(*(values[reward.name] for reward in rewards), strict=True):
        parts = [reward.weight * value for reward, value in zip(rewards, row, strict=True) if isinstance(value, float)]
        out.append(sum(parts) if parts and not any(isinstance(value, Failure) for value in row) else None)
    return out


def fit(rewards: Sequence[RewardFunction], values: Mapping[str, Sequence[Value]]) -> dict[str, list[Value]]:
    """The values, with a `Failure` for the one that moves a row's weighted sum beyond float32, which is no reward."""
    out = {reward.name: list(values[reward.name]) for reward in rewards}
    for row, total in enumerate(combine(rewards, out)):
        if total is not None and not abs(total) <= LARGEST:
            there = [reward for reward in rewards if isinstance(out[reward.name][row], float)]
            most = max(there, key=lambda reward: abs(reward.weight * out[reward.name][row]))
            what = f"{out[most.name][row]:.4g} at a weight of {most.weight:g} makes a sum beyond float32"
            out[most.name][row] = Failure(f"{what}; lower the weight or the values")
    return out


def arguments_of(prompts: Sequence[Prompt], responses: Sequence[Response], texts: Sequence[str]) -> Arguments:
    """The arguments that TRL passes to reward functions, the columns of the data among them."""
    columns, played = {name for prompt in prompts for name in prompt.columns}, [r.episode for r in responses]
    return {
        **{name: [prompt.columns.get(name) for prompt in prompts] for name in columns},
        "prompts": [prompt.prompt for prompt in prompts],
        "completions": [completion_of(*row) for row in zip(prompts, responses, texts, strict=True)],
        "completion_ids": [response.ids for response in responses],
        "truncated": [response.truncated for response in responses],
        **({"environments": [SimpleNamespace(**one.attributes) for one in played]} if all(played) else {}),
    }


def call_worker(worker: Worker, arguments: Arguments, rows: int) -> list[Value] | Failure:
    """Call a reward function on rows; one value a row, or the failure of the whole call."""
    worker.ask(_packed(arguments, rows), rows)
    return worker.answer()


def one_by_one(worker: Worker, arguments: Arguments, rows: int) -> Iterator[Value]:
    """Call a reward function on each row alone: after a call on all rows failed as a whole, only the rows that are to
    blame fail."""
    for row in range(rows):
        answer = call_worker(worker, row_of(arguments, row), 1)
        yield from [answer] if isinstance(answer, Failure) else answer


def too_many(name: str, failed: int, rows: int, limits: RewardLimits, example: str) -> RewardError:
    """The error of a reward that failed on more rows than `reward_limits.max_failed` allows."""
    most = f"reward_limits.max_failed is {limits.max_failed:g}"
    return RewardError(f"reward {name!r} failed on {failed} of {rows} rows, and {most}; {example}")


def _values(workers: Sequence[Worker], parts: Sequence[range], arguments: Arguments, total_rows: int) -> list[Value]:
    """The values of calls that were sent for all rows. After one that failed as a whole, each of its rows is called
    alone, so that only those to blame fail."""
    found: dict[int, Value] = {}
    alone: list[int] = []
    for worker, rows in zip(workers, parts, strict=False):
        answer = worker.answer()
        if isinstance(answer, Failure):
            alone += rows
        else:
            found |= zip(rows, answer, strict=True)
    _check_failed(workers[0], found, arguments, total_rows)
    for start in range(0, len(alone), len(workers)):
        asked = list(zip(workers, alone[start:], strict=False))
        for worker, row in asked:
            worker.ask(_packed(row_of(arguments, row), 1), 1)
        for worker, row in asked:
            answer = worker.answer()
            [found[row]] = [answer] if isinstance(answer, Failure) else answer
        _check_failed(workers[0], found, arguments, total_rows)
    return [found[row] for row in sorted(found)]


def _check_failed(worker: Worker, values: Mapping[int, Value], arguments: Arguments, rows: int) -> None:
    """Raise `RewardError` where too many of the values so far, {row: value}, are failures."""
    failed = [row for row, value in sorted(values.items()) if isinstance(value, Failure)]
    if len(failed) > worker.limits.max_failed * rows:
        first = failed[0]
        example = f"on row {first}: {values[first].why} ({str(arguments['completions'][first])[:200]!r})"
        raise too_many(worker.reward.name, len(failed), rows, worker.limits, example)


def _packed(arguments: Arguments, rows: int) -> bytes:
    """Pickle a call. Raises `RewardError` for columns that cannot be pickled."""
    try:
        return pickle.dumps((arguments, rows))
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
        what = "the columns of the prompts must be plain values, which rewards get in another process"
        raise RewardError(f"{what}: {error}") from error
