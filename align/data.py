"""Prompts: from a hub data set, a local file or a Python function; tokenised once, split by text."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from datasets import load_dataset
from datasets.exceptions import DatasetsError
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl.data_utils import is_conversational, maybe_apply_chat_template

from align.recipe import Data
from align.schema import load_object

SHOWN = 10  # problems of a source, and rows of a problem, that are told one by one


class DataError(ValueError):
    """Data that cannot be used; each problem names the source, the row and the fix."""

    def __init__(self, *problems: str):
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True)
class Prompt:
    """One row of a source."""

    ids: list[int]  # as the model sees it
    text: str  # the same before tokenisation, chat template applied
    prompt: Any  # the row's own prompt: text or messages, what reward functions get
    columns: dict[str, Any]  # the row's other columns, for reward functions

    @property
    def conversational(self) -> bool:
        return not isinstance(self.prompt, str)


@dataclass(frozen=True)
class Answer:
    """A response that the data brings along."""

    ids: list[int]  # its end token included
    text: str
    truncated: bool  # cut at data.max_response_tokens


@dataclass(frozen=True)
class Pair(Prompt):
    """A prompt with a preferred response, and another one where there is something to compare with."""

    chosen: Answer
    rejected: Answer | None
    row: int  # its place in the source

    @property
    def answers(self) -> list[Answer]:
        """The chosen one first."""
        return [self.chosen] if self.rejected is None else [self.chosen, self.rejected]


@dataclass(frozen=True)
class Prompts:
    """Training and held-out prompts, or pairs; no prompt's text stands in both."""

    train: list[Prompt]
    held_out: list[Prompt]

    def step(self, step: int, count: int, seed: int) -> list[Prompt]:
        """`count` training prompts: a pure function of the step, so that a resume goes on in place.

        The data is gone through in a new order each epoch; a step takes prompts across the border of two.
        """
        size = len(self.train)
        out = []
        for position in range(step * count, (step + 1) * count):
            epoch, offset = divmod(position, size)
            out.append(self.train[_order(size, seed, epoch)[offset]])
        return out


def fingerprint(prompts: list[Prompt]) -> str:
    """SHA-256 over rows as they are used, in their order: tokens of prompt and answers, and the other columns."""
    digest = hashlib.sha256()
    for prompt in prompts:
        answers = [answer.ids for answer in prompt.answers] if isinstance(prompt, Pair) else []
        digest.update(json.dumps([prompt.ids, answers, prompt.columns], default=str).encode() + b"\n")
    return digest.hexdigest()


@lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> list[int]:
    return random.Random(f"{seed}-{epoch}").sample(range(size), size)


Ends = Collection[int]


@dataclass(frozen=True)
class Rows:
    """What could be read of a source and of its evaluation prompts, and what is wrong with the rest."""

    own: list[Prompt]
    evaluation: list[Prompt]
    problems: list[str]


def load(data: Data, tokenizer: PreTrainedTokenizerBase, seed: int, ends: Ends | None = None) -> Prompts:
    """Read, tokenise and split. Raises `DataError`.

    `ends`: the tokens that end a response (`models.end_tokens`), by default the tokenizer's one.
    """
    return split(data, read(data, tokenizer, ends), seed)


def read(data: Data, tokenizer: PreTrainedTokenizerBase, ends: Ends | None = None) -> Rows:
    """Read and tokenise; see `load`."""
    ends = [tokenizer.eos_token_id] if ends is None else ends
    name, make = ("prompts", _prompt) if data.prompts else ("pairs", _pair)
    wanted = [(name, getattr(data, name), data.args, make)]
    if data.eval_prompts:
        wanted.append(("eval_prompts", data.eval_prompts, data.eval_args, _prompt))
    found, problems = [[], []], []
    for i, (name, source, args, make) in enumerate(wanted):
        try:
            rows = _rows(f"data.{name}", source, args)
        except DataError as error:
            problems += error.problems
            continue
        found[i], wrong = _prompts(rows, source, data, tokenizer, partial(make, ends=ends))
        problems += wrong
    return Rows(*found, problems)


def split(data: Data, rows: Rows, seed: int) -> Prompts:
    """Training and held-out prompts. Raises `DataError` with all problems of the rows, or where none is left."""
    if rows.problems:
        raise DataError(*rows.problems)
    prompts = rows.own
    name, source = ("prompts", data.prompts) if data.prompts else ("pairs", data.pairs)
    held_out = [*_hold_out(prompts, data.holdout, seed, data.holdout_by), *rows.evaluation]
    texts = {prompt.text for prompt in held_out}
    train = [prompt for prompt in prompts if prompt.text not in texts]
    if data.holdout_by:
        apart = {repr(prompt.columns.get(data.holdout_by)) for prompt in held_out}
        train = [prompt for prompt in train if repr(prompt.columns.get(data.holdout_by)) not in apart]
    if not train:
        raise DataError(f"data.{name}: {source}: all {len(prompts)} stand in data.eval_prompts too")
    assert texts.isdisjoint(prompt.text for prompt in train)
    return Prompts(train, held_out)


def _hold_out(prompts: list[Prompt], count: int, seed: int, by: str | None) -> list[Prompt]:
    """`count` distinct prompts, chosen by the seed; with `by`, whole groups of one value of that column, so that it
    may be a few more."""
    distinct = list({prompt.text: prompt for prompt in prompts}.values())
    if count >= len(distinct):
        raise DataError(f"data.holdout: {count} of {len(distinct)} distinct prompts leaves none to train on")
    if by is None:
        return random.Random(seed).sample(distinct, count)
    groups: dict[str, list[Prompt]] = {}  # by repr: a column may hold lists
    for i, prompt in enumerate(distinct):
        if by not in prompt.columns:
            raise DataError(f"data.holdout_by: row {i} has no column {by!r}; there are: {', '.join(prompt.columns)}")
        groups.setdefault(repr(prompt.columns[by]), []).append(prompt)
    held_out: list[Prompt] = []
    for group in random.Random(seed).sample(list(groups.values()), len(groups)):
        held_out += group if len(held_out) < count else []
    if len(held_out) == len(distinct):
        raise DataError(f"data.holdout_by: {count} prompts of whole groups of {by!r} leave none to train on")
    return held_out


def _rows(key: str, source: str, args: dict[str, Any]) -> list[Any]:
    """The rows of a source; `key` is where the recipe names it."""
    path = Path(source)
    loaders = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
    if path.suffix in loaders and not path.is_file():
        raise DataError(f"{key}: {source}: no such file")
    if path.suffix in loaders and path.stat().st_size == 0:
        raise DataError(f"{key}: {source}: no rows")
    try:
        if path.suffix == ".jsonl" and not args:
            rows = _json_lines(path)
        elif path.suffix in loaders:
            rows = list(load_dataset(loaders[path.suffix], data_files=source, **{"split": "train", **args}))
        elif ":" in source:
            rows = list(load_object(source)(**args))
        else:
            rows = list(load_dataset(source, **{"split": "train", **args}))
    except DatasetsError as error:
        raise DataError(f"{key}: {source}: {error.__cause__ or error}") from error
    except (ValueError, TypeError, OSError) as error:
        raise DataError(f"{key}: {source}: {error}") from error
    except Exception as error:  # of the user's function, or of a library that reads a damaged file
        raise DataError(f"{key}: {source}: {type(error).__name__}: {error}") from error
    if not rows:
        raise DataError(f"{key}: {source}: no rows")
    return rows


def _json_lines(path: Path) -> list[Any]:
    """The values of the file as they are written; a table would turn "2024-01-01" into a date and 1 into 1.0."""
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                rows += [json.loads(line.decode())] if line.strip() else []
            except UnicodeDecodeError as error:
                raise ValueError(f"line {number} is not text: {error}; save it as UTF-8") from error
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from error
    return rows


def _prompts(
    rows: list[Any], source: str, data: Data, tokenizer: PreTrainedTokenizerBase, make: Callable[..., Prompt]
) -> tuple[list[Prompt], list[str]]:
    """The rows that can be used, and what is wrong with the others."""
    out, wrong = [], {}
    for i, row in enumerate(rows):
        try:
            _check_row(row, f"{source}: row {i}")
            out.append(make(row, i, source, data, tokenizer))
        except DataError as error:
            wrong[i] = str(error)
        except (TypeError, ValueError) as error:  # of the tokenizer or its template
            wrong[i] = f"{source}: row {i}: cannot be tokenised: {error}; mend the text or the messages"
    return out, _told(wrong, source)


def _told(wrong: dict[int, str], source: str) -> list[str]:
    """{row: problem} in a few lines: rows with the same problem in one, and not more than `SHOWN` of them."""
    kinds: dict[str, list[int]] = {}
    for i, text in wrong.items():
        kinds.setdefault(text.replace(f"row {i}:", "row:", 1), []).append(i)
    out = []
    for first, *others in list(kinds.values())[:SHOWN]:
        named = ", ".join(map(str, others[:SHOWN])) + (", ..." if len(others) > SHOWN else "")
        out.append(wrong[first] + (f" (and {len(others)} more: rows {named})" if others else ""))
    if len(kinds) > SHOWN:
        out.append(f"{source}: {len(wrong)} rows cannot be used, for {len(kinds)} reasons; these are the first {SHOWN}")
    return out


def _check_row(row: Any, where: str) -> None:
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be a dictionary with a 'prompt', but it is {row!r}")
    if not isinstance(row.get("prompt"), (str, list)) or not row["prompt"]:
        there = ", ".join(map(str, row))
        what = f"'prompt' must be text or a list of messages; there are: {there}; it is {row.get('prompt')!r}"
        raise DataError(f"{where}: {what}")


def _prompt(row: dict, i: int, source: str, data: Data, tokenizer: PreTrainedTokenizerBase, ends: Ends) -> Prompt:
    prompt = row["prompt"]
    if is_conversational({"prompt": prompt}):
        if tokenizer.chat_template is None:
            raise DataError(f"{source}: row {i}: the prompt is a conversation, but the tokenizer has no chat template")
        _check_messages(prompt, f"{source}: row {i}: 'prompt'")
        if data.system and prompt[0]["role"] != "system":
            prompt = [{"role": "system", "content": data.system}, *prompt]
        text = _templated({"prompt": prompt}, tokenizer, f"{source}: row {i}")["prompt"]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    elif isinstance(prompt, str):
        text = prompt
        ids = tokenizer(text)["input_ids"]
    else:
        raise DataError(f"{source}: row {i}: a conversation is a list of {{role: ..., content: ...}}")
    if len(ids) > data.max_prompt_tokens:
        raise DataError(
            f"{source}: row {i}: the prompt has {len(ids)} tokens and data.max_prompt_tokens is"
            f" {data.max_prompt_tokens}; raise it or drop the row: {text[:80]!r}..."
        )
    if not ids:
        raise DataError(f"{source}: row {i}: the prompt has no tokens")
    columns = {name: value for name, value in row.items() if name not in ("prompt", "completion")}
    return Prompt(list(ids), text, prompt, columns)


def _pair(row: dict, i: int, source: str, data: Data, tokenizer: PreTrainedTokenizerBase, ends: Ends) -> Pair:
    """A row with `prompt`, `chosen` and `rejected`: all text, or all messages (TRL's explicit-prompt form).

    For objectives that compare nothing, such as sft, rows may have no `rejected`.
    """
    shared = _prompt(row, i, source, data, tokenizer, ends)
    if shared.conversational and row["prompt"][-1]["role"] == "assistant":
        raise DataError(f"{source}: row {i}: the prompt ends with an assistant message; that is the answers' place")
    chosen = _answer(row, "chosen", i, source, data, tokenizer, ends)
    rejected = _answer(row, "rejected", i, source, data, tokenizer, ends) if "rejected" in row else None
    if rejected is not None and chosen.ids == rejected.ids:
        where = f" in their first {data.max_response_tokens} tokens" if chosen.truncated else ""
        raise DataError(f"{source}: row {i}: chosen and rejected are the same response{where}; drop the row")
    return Pair(**vars(shared), chosen=chosen, rejected=rejected, row=i)


def _answer(
    row: dict, side: str, i: int, source: str, data: Data, tokenizer: PreTrainedTokenizerBase, ends: Ends
) -> Answer:
    """The tokens that would be sampled: what the template writes behind the prompt, up to the first end token."""
    given = row.get(side)
    if not isinstance(given, type(row["prompt"])) or not given:
        kind = "text" if isinstance(row["prompt"], str) else "a list of messages"
        raise DataError(f"{source}: row {i}: {side!r} must be {kind} as the prompt is, but it is {given!r}")
    text = given
    if not isinstance(given, str):
        _check_messages(given, f"{source}: row {i}: {side!r}")
        if any(message["role"] != "assistant" for message in given):
            what = f"{side!r} holds the answer alone, in assistant messages; leave out the prompt that it repeats"
            raise DataError(f"{source}: row {i}: {what}")
        messages = {"prompt": row["prompt"], "completion": given}
        text = _templated(messages, tokenizer, f"{source}: row {i}: {side!r}")["completion"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = next((t for t, token in enumerate(ids) if token in ends), None)
    ids = [*ids, tokenizer.eos_token_id] if end is None else ids[: end + 1]
    cut = len(ids) > data.max_response_tokens
    return Answer(ids[: data.max_response_tokens], tokenizer.decode(ids, skip_special_tokens=True), cut)


def _templated(messages: dict[str, list], tokenizer: PreTrainedTokenizerBase, where: str) -> dict[str, str]:
    try:
        return maybe_apply_chat_template(messages, tokenizer)
    except TemplateError as error:  # templates refuse what they do not foresee, such as a system message
        what = f"the tokenizer's chat template refuses it: {error}; change the messages, or data.system"
        raise DataError(f"{where}: {what}") from error


def _check_messages(messages: list, where: str) -> None:
    for message in messages:
        fine = isinstance(message, dict) and isinstance(message.get("role"), str)
        if not fine or not isinstance(message.get("content"), str) or not message["content"]:
            raise DataError(f"{where}: a message is {{role: ..., content: text}}, but one is {message!r}")
