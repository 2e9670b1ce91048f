"""Read the rows of a hub data set, a local file or a Python function, one after the other, and keep them on disk."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_dataset
from datasets.exceptions import DatasetsError
from transformers import PreTrainedTokenizerBase

from align.config.data_keys import Data
from align.config.factories import check_survives, load_object
from align.config.problems import shortened
from align.config.recipe_file import DEEPEST, HALF
from align.data.prompts import DataError, Prompt, Prompts
from align.data.split import KnownBy, Labels, Rows, by_column, by_text, split_rows
from align.data.store import CannotKeep, NoRoom, Store
from align.data.tokenise import Ends, LongPrompt, check_variables, make_pair, make_prompt, with_prompt
from align.system import files
from align.system.blame import no_exit

LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}  # of local files, by `datasets`

MOST = 5_000_000  # rows of a function: one that gives more may never end

SHOWN = 10  # problems of a source, and rows of a problem, that are listed one by one

Numbered = Iterable[tuple[int, Any]]  # (number, row); the first is 1


@dataclass
class _Taken:
    """What was read so far, of a source and its evaluation prompts."""

    known_by: KnownBy
    group_of: KnownBy
    store: Store = field(default_factory=Store)
    known: Labels = field(default_factory=Labels)
    groups: Labels = field(default_factory=Labels)
    parts: list[range] = field(default_factory=list)  # places in the store of those that can be used
    problems: list[str] = field(default_factory=list)
    dropped: int = 0

    def add(self, prompt: Prompt) -> None:
        """Keep a prompt."""
        self.store.add(prompt)
        self.known.add(self.known_by(prompt))
        self.groups.add(self.group_of(prompt))

    def rows(self) -> Rows:
        """The rows that can be used."""
        own, evaluation = ([*part] for part in [*self.parts, range(0), range(0)][:2])
        found, places = self.store.rows(), np.array(own + evaluation, int)
        labels = self.known.numbers()[places], self.groups.numbers()[places]
        return Rows(found.take(places), len(own), *labels, self.problems, self.dropped)


@dataclass
class _Wrong:
    """The problems of rows; those that say the same share one."""

    source: str
    count: int = 0
    kinds: set[int] = field(default_factory=set)  # hashes of all
    shown: dict[str, tuple[str, list[int]]] = field(default_factory=dict)  # {kind: first problem, other rows} of some
    others: dict[str, int] = field(default_factory=dict)  # {kind: rows besides the first}

    def add(self, i: int, text: str) -> None:
        """Note what is wrong with row `i`."""
        self.count += 1
        kind = text.replace(f"row {i}:", "row:", 1)
        self.kinds.add(hash(kind))
        if kind in self.shown:
            self.others[kind] += 1
            self.shown[kind][1].extend([i] if len(self.shown[kind][1]) < SHOWN else [])
        elif len(self.shown) < SHOWN:
            self.shown[kind], self.others[kind] = (text, []), 0

    def listed(self) -> list[str]:
        """At most `SHOWN` lines and a sum."""
        out = []
        for kind, (first, rows) in self.shown.items():
            count = self.others[kind]
            named = ", ".join(map(str, rows)) + (", ..." if count > SHOWN else "")
            out.append(first + (f" (and {count} more: rows {named})" if count else ""))
        if len(self.kinds) > SHOWN:
            what = f"{self.count} rows cannot be used, for {len(self.kinds)} reasons"
            out.append(f"{self.source}: {what}; these are the first {SHOWN}")
        return out


def load_prompts(data: Data, tokenizer: PreTrainedTokenizerBase, seed: int, ends: Ends | None = None) -> Prompts:
    """Read, tokenise and split. Raises `DataError`.

    `ends`: ids of the tokens that end a response (`model.load.end_tokens`), by default the tokenizer's one.
    """
    return split_rows(data, read_rows(data, tokenizer, ends), seed)


def read_rows(
    data: Data, tokenizer: PreTrainedTokenizerBase, ends: Ends | None = None, known_by: KnownBy = by_text
) -> Rows:
    """Read and tokenise; `ends` as in `load_prompts`, `known_by` tells prompts apart where some are held out."""
    ends = [tokenizer.eos_token_id] if ends is None else ends
    taken = _Taken(known_by, by_column(data.holdout_by))
    try:
        check_variables(data, tokenizer)
    except DataError as error:
        taken.problems += error.problems
        return taken.rows()
    for name, source, load, make in _wanted(data):
        try:
            rows, long = _take(taken, load(), source, data, tokenizer, partial(make, ends=ends))
        except DataError as error:
            taken.problems += error.problems
            taken.parts.append(range(0))
            continue
        if long == rows:
            taken.problems.append(f"data.{name}: {source}: every prompt has more than {data.max_prompt_tokens} tokens")
    return taken.rows()


def _wanted(data: Data) -> Iterator[tuple[str, str, Callable[[], Numbered], Callable[..., Prompt]]]:
    """(key, source, what gives its rows, what makes a prompt of one) of the source and of its evaluation prompts."""
    if data.episodes:
        yield "episodes", "seeds", partial(_episodes, data), make_prompt
    else:
        name, make = ("pairs", make_pair) if data.pairs else ("prompts", make_prompt)
        source = getattr(data, name)
        yield name, source, partial(_rows, f"data.{name}", source, data.args), make
    if data.eval_prompts:
        load = partial(_rows, "data.eval_prompts", data.eval_prompts, data.eval_args)
        yield "eval_prompts", data.eval_prompts, load, make_prompt


def _take(
    taken: _Taken,
    rows: Numbered,
    source: str,
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    make: Callable[..., Prompt],
) -> tuple[int, int]:
    """Take the rows that can be used, and the problems of the others; (rows, those dropped for their prompt's length).

    Raises `DataError` where the source itself cannot be read, and where the disk is full.
    """
    start, count, dropped, wrong = len(taken.store), 0, 0, _Wrong(source)
    for i, row in rows:
        count += 1
        try:
            row = with_prompt(row) if data.pairs else row
            _check_row(row, f"{source}: row {i}")
            taken.add(make(row, i, source, data, tokenizer))
        except LongPrompt as error:
            if data.long_prompts == "drop":
                dropped += 1
            else:
                wrong.add(i, str(error))
        except NoRoom:
            raise
        except DataError as error:
            wrong.add(i, str(error))
        except CannotKeep as error:
            wrong.add(i, f"{source}: row {i}: {error}")
        except (TypeError, ValueError) as error:  # of the tokenizer or its template
            wrong.add(i, f"{source}: row {i}: cannot be tokenised: {error}; mend the text or the messages")
    taken.store.flush()
    taken.parts.append(range(start, len(taken.store)))
    taken.problems += wrong.listed()
    taken.dropped += dropped
    return count, dropped


def _episodes(data: Data) -> Numbered:
    """Rows with an empty prompt, those of training first, then those that are held out: each has a seed of its own."""
    empty = [{"role": "user", "content": ""}]
    return ((seed + 1, {"prompt": empty, "seed": seed}) for seed in range(data.episodes + data.holdout))


def is_missing(source: str) -> bool:
    """Whether a source is the name of a local file that is not there."""
    return Path(source).suffix in LOADERS and not Path(source).is_file()


def _rows(key: str, source: str, args: dict[str, Any]) -> Numbered:
    """(number, row) of each row of a source, the first is 1; of JSON lines the number of the line.

    `key` is where the recipe names the source. Raises `DataError`.
    """
    path = Path(source)
    if is_missing(source):
        raise DataError(f"{key}: {source}: no such file")
    empty = True
    try:
        if path.suffix in LOADERS and path.stat().st_size == 0:
            raise ValueError("no rows")
        for row in _opened(source, args):
            empty = False
            yield row
    except DatasetsError as error:
        raise DataError(f"{key}: {source}: {error.__cause__ or error}") from error
    except (ValueError, TypeError, OSError) as error:
        raise DataError(f"{key}: {source}: {error}") from error
    except Exception as error:  # of the user's function, or of a library that reads a damaged file
        raise DataError(f"{key}: {source}: {type(error).__name__}: {error}") from error
    if empty:
        raise DataError(f"{key}: {source}: no rows")


def _opened(source: str, args: dict[str, Any]) -> Numbered:
    """The rows of a source as it gives them, with their numbers."""
    path, args = Path(source), dict(args)
    if path.suffix == ".jsonl" and not args:
        return _json_lines(path)
    if path.suffix not in LOADERS and ":" in source:
        return _of_function(source, args)
    kind, args = (LOADERS[path.suffix], {"data_files": source, **args}) if path.suffix in LOADERS else (source, args)
    return enumerate(load_dataset(kind, **{"split": "train", **args}), 1)  # a table on disk


def _json_lines(path: Path) -> Numbered:
    """The file's values as they are written; a table would turn "2024-01-01" into a date and 1 into 1.0.

    Raises `ValueError`.
    """
    with path.open("rb") as file:
        yield from files.numbered_json_lines(file)


def _of_function(source: str, args: dict[str, Any]) -> Numbered:
    """What a function gives: a list, or rows one after the other. Raises `ValueError`, and what the function raises."""
    if source.partition(":")[0].partition(".")[0] in sys.stdlib_module_names:
        raise ValueError("is a part of Python; name a function of your own, which returns rows")
    check_survives(source, lambda rows: deque(islice(rows(**args), MOST + 1), maxlen=0))
    with no_exit(source):
        for number, row in enumerate(load_object(source)(**args), 1):
            if number > MOST:
                raise ValueError(f"gives more than {MOST} rows; does it end? Give fewer")
            yield number, row


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
