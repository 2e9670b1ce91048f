"""The bank: log-probabilities of reference and guide for the responses of a source's pairs, computed once.

`python -m align annotate RECIPE` writes it; a source that names it needs no reference and no guide for what is in it.
Entries are found by the exact token ids of prompt and response.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
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

SUM = "sha256"  # the checksum's name in the file's metadata

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

    def check(self, pairs: Iterable[Pair], where: str) -> None:
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
    """Store `scored`, {quantity: [B,T] nats} of all rows of a batch, as a bank. Raises `DataError` where a number is
    not finite, and where the bank cannot be written."""
    tensors = {name: values[batch.present].float() for name, values in scored.items()}
    for name, values in tensors.items():
        if wrong := int((~values.isfinite()).sum()):
            raise DataError(f"{folder}: {name} is not finite on {wrong} of {len(values)} tokens; look at that model")
    keys = [key(prompt, ids) for prompt, ids in zip(batch.prompt_ids, _responses(batch), strict=True)]
    tensors["keys"] = torch.tensor([list(bytes.fromhex(k)) for k in keys], dtype=torch.uint8)
    tensors["lengths"] = batch.size
    stored = {**identity, SUM: checksum(tensors, identity)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / f".{FILE}", metadata=stored)
        (folder / f".{FILE}").rename(folder / FILE)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{folder / FILE}: cannot be written: {error}; make room and annotate again") from error


def checksum(tensors: Mapping[str, Tensor], identity: Mapping[str, str]) -> str:
    """SHA-256 in hex of all that a bank holds: its identity, and the names, kinds, shapes and bytes of its tensors."""
    described = {name: [str(value.dtype), list(value.shape)] for name, value in tensors.items()}
    digest = hashlib.sha256(json.dumps([dict(identity), described], sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def read(folder: Path, identity: Mapping[str, str], where: str) -> Bank:
    """Load a bank. Raises `DataError` where there is none, where its identity is another one, and where it is not as
    it was written. Banks of earlier versions have no checksum: of those only the form and the numbers are checked."""
    if not (folder / FILE).is_file():
        raise DataError(f"{where}: {folder} holds no bank; make it with: python -m align annotate RECIPE")
    try:
        with safe_open(folder / FILE, "pt") as file:
            stored = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{where}: {folder / FILE} cannot be read: {error}; annotate again") from error
    for name, value in identity.items():
        if name != "guide" and name not in stored:
            raise DataError(f"{where}: {folder / FILE} is no bank; annotate again")
        if name in stored and stored[name] != value:
            what = f"the {name} is another one now ({stored[name][:60]} then, {value[:60]} now)"
            raise DataError(f"{where}: {folder} does not fit: {what}; annotate again")
    names, written = tuple(name for name in QUANTITIES if name in tensors), stored.pop(SUM, None)
    unknown = stored.keys() - {*identity, "guide"}
    if unknown or written not in (None, checksum(tensors, stored)) or not _whole(tensors, names):
        raise DataError(f"{where}: {folder / FILE} is not as it was written; annotate again")
    lengths = tensors["lengths"].tolist()
    split = {name: tensors[name].split(lengths) for name in names}
    keys = [bytes(row.tolist()).hex() for row in tensors["keys"]]
    return Bank({k: {name: split[name][i] for name in names} for i, k in enumerate(keys)}, names)


def _whole(tensors: Mapping[str, Tensor], names: Sequence[str]) -> bool:
    """Whether there are keys, and a finite float32 number for each token of the lengths."""
    lengths, keys = tensors.get("lengths"), tensors.get("keys")
    if lengths is None or keys is None or lengths.dim() != 1 or keys.shape != (len(lengths), 32):
        return False
    if lengths.is_floating_point() or keys.dtype != torch.uint8 or bool((lengths < 0).any()):
        return False
    values = [tensors[name] for name in names]
    return all(v.dtype == torch.float32 and v.shape == (int(lengths.sum()),) and v.isfinite().all() for v in values)


def _responses(batch: Batch) -> list[list[int]]:
    return [ids[:n].tolist() for ids, n in zip(batch.response_ids, batch.size.tolist(), strict=True)]
