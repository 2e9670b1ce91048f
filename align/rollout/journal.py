"""Keep on disk what was sampled and scored since the newest checkpoint: a resumed run samples none of it again.

An entry is one call of the sampler on one rank. It is valid for one lineage (`checkpoint.resume.lineage`): the same
recipes from the same start lead to the same weights, and from the same prompts to the same responses.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from align.data.prompts import Prompt, Response, fingerprint
from align.rollout.rollouts import Rollout, Sampled
from align.system import files

ROLLOUTS = TypeAdapter(list[Rollout])
RESPONSE = TypeAdapter(Response)


@dataclass(frozen=True)
class Call:
    """One call of the sampler."""

    step: int  # from 0
    source: int  # its place among the recipe's sources
    round: int  # of dynamic sampling, from 0
    rank: int

    @property
    def name(self) -> str:
        """The path of its entries below the journal's folder, without their ending."""
        return f"step_{self.step + 1}/{self.source}-{self.round}-{self.rank}"


@dataclass(frozen=True)
class Journal:
    """The entries of one run, in its folder."""

    folder: Path
    lineage: list[tuple[int, str]]
    agreed: Callable[[bool], bool] = bool  # whether all ranks that must sample together say so; collective

    def sampled(self, call: Call, prompts: Sequence[Prompt], sample: Callable[[], Sampled]) -> Sampled:
        """This rank's responses to the prompts of a step: those on disk, or new ones from `sample`, which it keeps."""
        path, key = self._path(call, "sampled"), self._key(call, prompts)
        rows = read(path, key)
        if self.agreed(rows is not None):
            return [
                (row["group"], row["index"], _prompt(row, prompts), RESPONSE.validate_python(row["response"]))
                for row in rows
            ]
        new = sample()
        scored = self._path(call, "scored")
        with files.writing(scored):
            scored.unlink(missing_ok=True)  # of other responses, which older entries do not say
        told = [
            {"group": i, "index": j, **_opened(prompt, prompts[i]), "response": _told(response)}
            for i, j, prompt, response in new
        ]
        write(path, key, told)
        return new

    def scored(self, call: Call, sampled: Sampled, score: Callable[[], list[Rollout]]) -> list[Rollout]:
        """The rollouts of these responses: those on disk, or new ones from `score`, which it keeps.

        An entry has only what scoring adds, in the order of `sampled`.
        """
        path, key = self._path(call, "scored"), self._key(call, [prompt for *_, prompt, _ in sampled])
        key["responses"] = _digest([[i, j, _told(response)] for i, j, _, response in sampled])
        rows = read(path, key)
        if rows is not None:
            whole = [
                {**row, "prompt": prompt, "response": response}
                for row, (*_, prompt, response) in zip(rows, sampled, strict=True)
            ]
            return ROLLOUTS.validate_python(whole)
        new = score()
        write(path, key, [{k: v for k, v in vars(r).items() if k not in ("prompt", "response")} for r in new])
        return new

    def kept(self, step: int) -> int:
        """Number of responses on disk of the steps behind `step`, those of all ranks."""
        later = [folder for number, folder in files.numbered(self.folder).items() if number > step]
        heads = [_head(path) for folder in later for path in folder.glob("*.sampled")]
        return sum(head["rows"] for head in heads if head and head["lineage"] == self._lineage)

    def forget(self, step: int, ahead_of: Collection[int] = ()) -> None:
        """Remove the entries of the first `step` steps, which a checkpoint has now; not of the steps right behind those
        of `ahead_of`, which were sampled before these checkpoints were written."""
        for number, folder in files.numbered(self.folder).items():
            if number <= step and number - 1 not in ahead_of:
                shutil.rmtree(folder)

    def adopt(self, folder: Path, step: int) -> None:
        """Take over the entries of a step, counted from 1, from another run's journal; they count where the lineage is
        the same."""
        if (there := folder / f"step_{step}").is_dir():
            shutil.copytree(there, self.folder / there.name, dirs_exist_ok=True)

    def _path(self, call: Call, kind: str) -> Path:
        return self.folder / f"{call.name}.{kind}"

    def _key(self, call: Call, prompts: Sequence[Prompt]) -> dict[str, str]:
        return {"lineage": self._lineage, "call": call.name, "prompts": fingerprint(prompts)}

    @property
    def _lineage(self) -> str:
        return _digest(self.lineage)


def write(path: Path, key: dict[str, str], rows: list[dict[str, Any]]) -> None:
    """Write a head of one line, and the rows; JSON gives back each float as it was. Raises `DiskError`."""
    body = json.dumps(rows, default=to_jsonable_python)
    head = {**key, "rows": len(rows), "sha256": sha256(body.encode()).hexdigest()}
    files.write_whole(path, f"{json.dumps(head)}\n{body}")


def read(path: Path, key: dict[str, str]) -> list[dict[str, Any]] | None:
    """Read the rows; None where there are none for this key, or not as they were written.

    A part of the key that an entry does not have counts as the same: older entries do not say of which call they are,
    and those of scores not of which responses. These are removed where the responses are sampled again.
    """
    head = _head(path)
    if head is None or any(head.get(name, value) != value for name, value in key.items()):
        return None
    body = path.read_bytes().partition(b"\n")[2]
    return json.loads(body) if sha256(body).hexdigest() == head["sha256"] else None


def _head(path: Path) -> dict[str, Any] | None:
    """Read the first line of an entry; None where it is missing or damaged."""
    try:
        with path.open() as file:
            head = json.loads(file.readline())
    except (OSError, ValueError):  # a power cut may leave the name without the content
        return None
    whole = isinstance(head, dict) and {"lineage", "prompts", "rows", "sha256"} <= head.keys()
    return head if whole and isinstance(head["rows"], int) else None


def _told(response: Response) -> dict[str, Any]:
    """The fields of a response; those that came later only where they say something, for the entries of before."""
    return {name: value for name, value in vars(response).items() if value not in ((), None)}


def _opened(prompt: Prompt, row: Prompt) -> dict[str, Any]:
    """What an environment made of the prompt of a row; nothing where it has none."""
    return {} if prompt is row else {"opened": {name: getattr(prompt, name) for name in ("ids", "text", "prompt")}}


def _prompt(row: dict[str, Any], prompts: Sequence[Prompt]) -> Prompt:
    """The prompt of an entry's row."""
    prompt = prompts[row["group"]]
    return replace(prompt, **row["opened"]) if "opened" in row else prompt


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, default=to_jsonable_python).encode()).hexdigest()
