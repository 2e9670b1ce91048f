"""The bank: log-probabilities of reference and guide for the responses of a source's pairs, computed once.

`python -m align annotate RECIPE` writes it; a source that names it needs no reference and no guide for what is in it.
Entries are found by the exact token ids of prompt and response.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from align.batch import Batch, pad
from align.data.prompts import DataError, Pair

FILE = "bank.safetensors"

QUANTITIES = ("ref_logprob", "guide_logprob")


@dataclass(frozen=True)
class Bank:
    """The log-probabilities of a bank."""

    entries: Mapping[str, Mapping[str, Tensor]]  # {`key` of prompt and response: {quantity: [T] float32 nats}}
    quantities: tuple[str, ...]  # those that every entry has

    def fill(self, batch: Batch) -> Batch:
        """Add the bank's quantities, [B,T], to a batch whose rows are all in it; an empty bank adds none."""
        if not self.quantities:
            return batch
        keys = [key(prompt, ids) for prompt, ids in zip(batch.prompt_ids, _responses(batch), strict=True)]
        found = {name: pad([self.entries[k][name] for k in keys], torch.float32) for name in self.quantities}
        return replace(batch, **found)

    def check(self, pairs: Sequence[Pair], where: str) -> None:
        """Raise `DataError` for the first pair that is not in the bank; `where` is the recipe's key that names it."""
        for number, pair in enumerate(pairs):
            for answer in pair.answers:
                if key(pair.ids, answer.ids) not in self.entries:
                    what = f"the tokens of pair {number} are not all in it: it was made from other data or limits"
                    raise DataError(f"{where}: {what}; annotate again: {pair.text[:60]!r}...")


def key(prompt_ids: Sequence[int], response_ids: Sequence[int]) -> str:
    """SHA-256 of the exact token ids."""
    return hashlib.sha256(json.dumps([list(prompt_ids), list(response_ids)]).encode()).hexdigest()


def identity(tokenizer: PreTrainedTokenizerBase, models: Mapping[str, str], temperature: float) -> dict[str, str]:
    """{name: value} of everything but the tokens that a bank's numbers depend on, for `write` and `read`."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return {
        "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "template": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest(),
        "temperature": repr(float(temperature)),
        **models,
    }


def write(folder: Path, batch: Batch, scored: Mapping[str, Tensor], identity: Mapping[str, str]) -> None:
    """Store `scored`, {quantity: [B,T] nats} of all rows of a batch, as a bank."""
    tensors = {name: values[batch.mask].float() for name, values in scored.items()}
    keys = [key(prompt, ids) for prompt, ids in zip(batch.prompt_ids, _responses(batch), strict=True)]
    tensors["keys"] = torch.tensor([list(bytes.fromhex(k)) for k in keys], dtype=torch.uint8)
    tensors["lengths"] = batch.length
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / f".{FILE}", metadata=dict(identity))
    (folder / f".{FILE}").rename(folder / FILE)


def read(folder: Path, identity: Mapping[str, str], where: str) -> Bank:
    """Load a bank. Raises `DataError` where there is none, and where its identity is another one."""
    if not (folder / FILE).is_file():
        raise DataError(f"{where}: {folder} holds no bank; make it with: python -m align annotate RECIPE")
    try:
        opened = safe_open(folder / FILE, "pt")
    except SafetensorError as error:
        raise DataError(f"{where}: {folder / FILE} cannot be read: {error}; annotate again") from error
    with opened as file:
        stored = file.metadata() or {}
        for name, value in identity.items():
            if name != "guide" and name not in stored:
                raise DataError(f"{where}: {folder / FILE} is no bank; annotate again")
            if name in stored and stored[name] != value:
                what = f"the {name} is another one now ({stored[name][:60]} then, {value[:60]} now)"
                raise DataError(f"{where}: {folder} does not fit: {what}; annotate again")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    names = tuple(name for name in QUANTITIES if name in tensors)
    lengths = tensors["lengths"].tolist()
    split = {name: tensors[name].split(lengths) for name in names}
    keys = [bytes(row.tolist()).hex() for row in tensors["keys"]]
    return Bank({k: {name: split[name][i] for name in names} for i, k in enumerate(keys)}, names)


def _responses(batch: Batch) -> list[list[int]]:
    return [ids[:n].tolist() for ids, n in zip(batch.response_ids, batch.length.tolist(), strict=True)]
