"""Read the rows of a hub data set, a local file or a Python function, and split them into training and held out."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import load_dataset
from datasets.exceptions import DatasetsError
from transformers import PreTrainedTokenizerBase

from align.config.data_keys import Data
from align.config.factories import check_survives, load_object
from align.config.problems import nearest, shortened
from align.config.recipe_file import DEEPEST, HALF
from align.data.prompts import DataError, Prompt, Prompts
from align.data.tokenise import Ends, LongPrompt, check_variables, make_pair, make_prompt, with_prompt
from align.system import files
from align.system.blame import no_exit

LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}  # of local files, by `datasets`

MOST = 5_000_000  # rows of a function, all of which are held in memory

SHOWN = 10  # problems of a source, and rows of a problem, that are listed one by one


@dataclass(frozen=True)
class Rows:
    """The rows of a source and of its evaluation prompts that can be used, and the problems of the others."""

    own: list[Prompt]  # of the source itself
    evaluation: list[Prompt]
    problems: list[str]
    dropped: int = 0  # rows with a prompt longer than data.max_prompt_tokens, where data.long_prompts is drop


def load_prompts(data: Data, tokenizer: PreTrainedTokenizerBase, seed: int, ends: Ends | None = None) -> Prompts:
    """Read, tokenise and split. Raises `DataError`.

    `ends`: ids of the tokens that end a response (`model.load.end_tokens`), by default the tokenizer's one.
    """
    return split_rows(data, read_rows(data, tokenizer, ends), seed)


def read_rows(data: Data, tokenizer: PreTrainedTokenizerBase, ends: Ends | None = None) -> Rows:
    """Read and tokenise; `ends` as in `load_prompts`."""
    ends = [tokenizer.eos_token_id] if ends is None else ends
    name, make = ("pairs", make_pair) if data.pairs else ("prompts", make_prompt)
    name, source = ("episodes", "seeds") if data.episodes else (name, getattr(data, name))
    load = partial(_episodes, data) if data.episodes else partial(_rows, f"data.{name}", source, data.args)
    wanted = [(name, source, load, make)]
    if data.eval_prompts:
        load = partial(_rows, "data.eval_prompts", data.eval_prompts, data.eval_args)
        wanted.append(("eval_prompts", data.eval_prompts, load, make_prompt))
    try:
        check_variables(data, tokenizer)
    except DataError as error:
        return Rows([], [], error.problems)
    found, problems, dropped = [[], []], [], 0
    for i, (name, source, load, make) in enumerate(wanted):
        try:
            rows = load()
        except DataError as error:
            problems += error.problems
            continue
        found[i], wrong, long = _prompts(rows, source, data, tokenizer, partial(make, ends=ends))
        problems += wrong
        dropped += long
        if long == len(rows):
            problems.append(f"data.{name}: {source}: every prompt has more than {data.max_prompt_tokens} tokens")
    return Rows(*found, problems, dropped)


def by_text(prompt: Prompt) -> str:
    """What a prompt is known by: rows of the same text do not stand on both sides of the holdout."""
    return prompt.text


def by_row(prompt: Prompt) -> str:
    """What a prompt is known by where an environment makes something else of each row: its text and its columns."""
    return f"{prompt.text}{prompt.columns!r}"


def split_rows(data: Data, rows: Rows, seed: int, known_by: Callable[[Prompt], str] = by_text) -> Prompts:
    """Split rows into training and held-out prompts.

    Raises `DataError` with all problems of the rows, and where none is left to train on.
    """
    if rows.problems:
        raise DataError(*rows.problems)
    prompts = rows.own
    name, source = ("prompts", data.prompts) if data.prompts else ("pairs", data.pairs)
    if data.episodes:
        return Prompts(prompts[: data.episodes], [*prompts[data.episodes :], *rows.evaluation])
    held_out = [*_hold_out(prompts, data.holdout, seed, data.holdout_by, known_by), *rows.evaluation]
    known = {known_by(prompt) for prompt in held_out}
    train = [prompt for prompt in prompts if known_by(prompt) not in known]
    if data.holdout_by:
        apart = {repr(prompt.columns.get(data.holdout_by)) for prompt in held_out}
        train = [prompt for prompt in train if repr(prompt.columns.get(data.holdout_by)) not in apart]
    if not train:
        raise DataError(f"data.{name}: {source}: all {len(prompts)} stand in data.eval_prompts too")
    assert known.isdisjoint(map(known_by, train))
    return Prompts(train, held_out, rows.dropped)


def _episodes(data: Data) -> list[tuple[int, dict]]:
    """Rows with an empty prompt, those of training first, then those that are held out: each has a seed of its own."""
    empty = [{"role": "user", "content": ""}]
    return [(seed + 1, {"prompt": empty, "seed": seed}) for seed in range(data.episodes + data.holdout)]


def _hold_out(
    prompts: list[Prompt], count: int, seed: int, by: str | None, known_by: Callable[[Prompt], str]
) -> list[Prompt]:
    """Choose `count` distinct prompts by the seed; with `by`, whole groups that share a value of that column, so that
    there may be a few more. Raises `DataError`."""
    distinct = list({known_by(prompt): prompt for prompt in prompts}.values())
    if count >= len(distinct):
        raise DataError(f"data.holdout: {count} of {len(distinct)} distinct prompts leaves none to train on")
    if by is None:
        return random.Random(seed).sample(distinct, count)
    groups: dict[str, list[Prompt]] = {}  # by repr: a column may hold lists
    for prompt in distinct:
        if by not in prompt.columns:
            what = f"a row has no column {by!r}; {nearest(by, prompt.columns)}"
            raise DataError(f"data.holdout_by: {what}: {prompt.text[:60]!r}...")
        groups.setdefault(repr(prompt.columns[by]), []).append(prompt)
    held_out: list[Prompt] = []
    for group in random.Random(seed).sample(list(groups.values()), len(groups)):
        held_out += group if len(held_out) < count else []
    if len(held_out) == len(distinct):
        raise DataError(f"data.holdout_by: {count} prompts of whole groups of {by!r} leave none to train on")
    return held_out


def is_missing(source: str) -> bool:
    """Whether a source is the name of a local file that is not there."""
    return Path(source).suffix in LOADERS and not Path(source).is_file()


def _rows(key: str, source: str, args: dict[str, Any]) -> list[tuple[int, Any]]:
    """(number, row) of each row of a source, the first is 1; of JSON lines the number of the line.

    `key` is where the recipe names the source. Raises `DataError`.
    """
    path = Path(source)
    if is_missing(source):
        raise DataError(f"{key}: {source}: no such file")
    if path.suffix in LOADERS and path.stat().st_size == 0:
        raise DataError(f"{key}: {source}: no rows")
    try:
        if path.suffix == ".jsonl" and not args:
            return _json_lines(path)
        elif path.suffix in LOADERS:
            rows = list(load_dataset(LOADERS[path.suffix], data_files=source, **{"split": "train", **args}))
        elif ":" in source:
            if source.partition(":")[0].partition(".")[0] in sys.stdlib_module_names:
                raise ValueError("is a part of Python; name a function of your own, which returns rows")
            check_survives(source, lambda rows: list(islice(rows(**args), MOST + 1)))
            with no_exit(source):
                rows = list(islice(load_object(source)(**args), MOST + 1))
            if len(rows) > MOST:
                raise ValueError(f"gives more than {MOST} rows; does it end? Return a list")
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
    return list(enumerate(rows, 1))


def _json_lines(path: Path) -> list[tuple[int, Any]]:
    """The file's values as they are written; a table would turn "2024-01-01" into a date and 1 into 1.0.

    Raises `ValueError`.
    """
    with path.open("rb") as file:
        rows = list(files.numbered_json_lines(file))
    if not rows:
        raise ValueError("no rows")
    return rows


def _prompts(
    rows: list[tuple[int, Any]],
    source: str,
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    make: Callable[..., Prompt],
) -> tuple[list[Prompt], list[str], int]:
    """(rows that can be used, problems of the others, number of those dropped for the length of their prompt)."""
    out, wrong, dropped = [], {}, 0
    for i, row in rows:
        try:
            row = with_prompt(row) if data.pairs else row
            _check_row(row, f"{source}: row {i}")
            out.append(make(row, i, source, data, tokenizer))
        except LongPrompt as error:
            if data.long_prompts == "drop":
                dropped += 1
            else:
                wrong[i] = str(error)
        except DataError as error:
            wrong[i] = str(error)
        except (TypeError, ValueError) as error:  # of the tokenizer or its template
            wrong[i] = f"{source}: row {i}: cannot be tokenised: {error}; mend the text or the messages"
    return out, _listed(wrong, source), dropped


def _listed(wrong: dict[int, str], source: str) -> list[str]:
    """Put {row: problem} into at most `SHOWN` lines and a sum; rows with the same problem share one."""
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
    """Raise `DataError` unless a row is a dictionary with a prompt, of values that can be passed on."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be a dictionary with a 'prompt', but it is {shortened(row)}")
    if odd := next((name for name in row if not isinstance(name, str)), None):
        raise DataError(f"{where}: a column is called {shortened(odd)}; rename it, a name is text")
    if what := _flaw(row):
        raise DataError(f"{where}: {what}")
    if not isinstance(row.get("prompt"), (str, list)) or not row["prompt"]:
        there = ", ".join(map(str, row))
        what = f"'prompt' must be text or a list of messages; there are: {there}; it is {shortened(row.get('prompt'))}"
        if "prompt" not in row and {"chosen", "rejected"} <= row.keys():
            what += "; without it, chosen and rejected must be conversations that begin with the same messages"
        elif "prompt" not in row:
            what += "; for an environment that asks by itself write [{role: user, content: ''}]"
        raise DataError(f"{where}: {what}")


def _flaw(value: Any, depth: int = 0) -> str | None:
    """Say what of a value no file and no other process would take; None where nothing is wrong."""
    if isinstance(value, str) and HALF.search(value):
        return f"{shortened(value)} holds half a character; write the whole one"
    if depth > DEEPEST:
        return f"a value stands more than {DEEPEST} lists deep; make it flat"
    if isinstance(value, dict):
        value = [*value, *value.values()]
    inside = value if isinstance(value, (list, tuple)) else ()
    return next(filter(None, (_flaw(inner, depth + 1) for inner in inside)), None)
