"""`python -m align verify`: check that a result is what its run recorded, and that it gives the trained policy's
log-probabilities."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from rich.table import Table
from rich.text import Text
from torch import nn

from align.model.adapter_files import adapter_config
from align.model.load import UNREADABLE, load_config, load_model
from align.model.locate import ModelError, locate
from align.result import record
from align.result.push import SUMMARY, SummaryError, read_summary
from align.result.record import Record, RecordError, Stored
from align.system.text import for_terminal

# Largest gap, in nats at temperature 1, between two computations of a log-probability: other kernels sum in another
# order. SmolLM2-135M on a CPU, rows together and alone: 0 in float32, 0.3 in bfloat16; without its adapter 1.9 and 2.7.
ALLOWED = {"float32": 1e-3, "bfloat16": 1.0}


@dataclass(frozen=True)
class Check:
    """One check and its outcome."""

    name: str
    passed: bool
    found: str  # what was found, or why it does not pass


class VerifyError(ValueError):
    """A check does not pass."""

    def __init__(self, check: str, what: str):
        super().__init__(what)
        self.check = check


def verify(name: str, base: str | None = None) -> list[Check]:
    """Check a folder or repository up to the first check that does not pass; all pass where the last one does.

    `name` may also be the folder of a run. `base` is the folder or name of the base, if not the one in the record. It
    is loaded on the CPU, in the dtype of the training.
    Raises `ModelError` where there is no such folder or repository.
    """
    checks, there = [], Path(locate(name))
    folder = record.result_in(there)
    try:
        for check, found in _checks(folder, base):
            checks.append(Check(check, True, found))
        if folder != there and (there / SUMMARY).is_file():
            checks.append(Check("figures", True, _same_figures(there)))
    except VerifyError as error:
        checks.append(Check(error.check, False, str(error)))
    except UNREADABLE as error:
        checks.append(Check("reload", False, f"a file cannot be used: {type(error).__name__}: {error}"))
    return checks


def table(checks: list[Check]) -> Table:
    """The checks as a table for the terminal."""
    shown = Table("check", "", "found")
    for check in checks:
        shown.add_row(
            Text(for_terminal(check.name)),
            "[green]passed" if check.passed else "[red]FAILED",
            Text(for_terminal(check.found)),
        )
    return shown


def as_json(checks: list[Check]) -> str:
    """The checks as JSON: {passed, checks: [{name, passed, found}]}."""
    return json.dumps({"passed": checks[-1].passed, "checks": [vars(check) for check in checks]}, indent=2)


def _checks(folder: Path, base: str | None) -> Iterator[tuple[str, str]]:
    """(check, what was found) of each. Raises `VerifyError` at the first that does not pass."""
    adapter = (folder / "adapter_config.json").is_file() or (folder / "adapter_model.safetensors").is_file()
    yield "files", _files(folder, adapter)
    try:
        recorded = record.read(folder)
    except RecordError as error:
        raise VerifyError("record", str(error)) from error
    kind = f"{recorded.dtype}, base in {recorded.quantize}" if recorded.quantize else recorded.dtype
    yield "record", f"{len(recorded.tensors)} tensors, {len(recorded.probes)} reference sequences, {kind}"
    yield "values", _values(folder, adapter)
    yield "tensors", _as_recorded(record.stored(folder), recorded.tensors)
    yield "description", _description(folder, recorded)
    if adapter:
        path = _find_base(folder, recorded, base)
        yield "base", _same_base(path, recorded)
        yield "log-probabilities", _adapter_logprobs(path, folder, recorded)
    else:
        yield "log-probabilities", _model_logprobs(_load(folder, recorded), recorded)


def _files(folder: Path, adapter: bool) -> str:
    """Check that there are weights in safetensors, and a configuration that is supported."""
    if (folder / "checkpoints").is_dir() and not adapter:
        raise VerifyError("files", f"{folder}: is the folder of a run that has no result yet; end it with --resume")
    try:
        if adapter:
            adapter_config(folder)
            return "an adapter, safetensors"
        load_config(str(folder))
    except ModelError as error:
        raise VerifyError("files", str(error)) from error
    if not list(folder.glob("*.safetensors")):
        raise VerifyError("files", f"{folder}: has no weights in safetensors; pickle (.bin, .pt) is never read")
    return "a whole model, safetensors"


def _values(folder: Path, adapter: bool) -> str:
    """Check that there are tensors, that they are finite, and that the adapter or the model is not zero."""
    zero, count = {}, 0
    for name, tensor in record.tensors(folder):
        if not torch.isfinite(tensor).all():
            raise VerifyError("values", f"{name} holds values that are not finite")
        zero[name] = not tensor.any()
        count += tensor.numel()
    if not count:
        raise VerifyError("values", "the file is empty: it holds no tensors")
    if not (_changes(zero) if adapter else not all(zero.values())):
        raise VerifyError("values", "all zero: the adapter changes nothing" if adapter else "all weights are zero")
    return f"{count:,} numbers, finite, not all zero"


def _changes(zero: dict[str, bool]) -> bool:
    """Whether some layer's change, B times A, is not zero, by which tensors are: {name: whether it is zero}."""
    pairs = [(name, name.replace("lora_A", "lora_B")) for name in zero if "lora_A" in name]
    return any(not zero[a] and not zero.get(b, True) for a, b in pairs)


def _description(folder: Path, recorded: Record) -> str:
    """Check that all other files are those in the record, and that there are no more."""
    changed = sorted(set(recorded.files.items()) - set(record.described(folder).items()))
    if changed:
        raise VerifyError("description", f"{changed[0][0]} is not what was recorded")
    if more := record.unrecorded(folder, recorded):
        raise VerifyError("description", f"{more[0]} is not in the record; take it out of {folder}")
    kind = "all" if recorded.complete else "of configuration and tokenizer"
    return f"{len(recorded.files)} files as recorded: {kind}"


def _same_figures(run: Path) -> str:
    """Check that the figures of a run's card and gate are of this result."""
    try:
        summary = read_summary(run)
    except SummaryError as error:
        raise VerifyError("figures", str(error)) from error
    return f"{SUMMARY} is of this result" if summary.record else f"{SUMMARY} of an older version: it names no result"


def _as_recorded(found: dict[str, Stored], recorded: dict[str, Stored]) -> str:
    """Check that the tensors are those in the record."""
    for name in sorted(found.keys() ^ recorded.keys()):
        where = "is not in the record" if name in found else "is in the record and not in the files"
        raise VerifyError("tensors", f"{name} {where}")
    for name, tensor in sorted(recorded.items()):
        if found[name] != tensor:
            raise VerifyError("tensors", f"{name} is not what was recorded: {_difference(found[name], tensor)}")
    return f"{len(found)} as recorded: SHA-256, shape and dtype"


def _difference(found: Stored, recorded: Stored) -> str:
    """Say in what a tensor differs from its record."""
    key = next(key for key in ("shape", "dtype", "sha256") if getattr(found, key) != getattr(recorded, key))
    return f"{key} {getattr(found, key)}, and the record says {getattr(recorded, key)}"


def _find_base(folder: Path, recorded: Record, base: str | None) -> Path:
    """The folder of the base, fetched where it must be."""
    if recorded.base is None:
        raise VerifyError("base", "the record is that of a whole model, and the folder holds an adapter")
    named, own = str(adapter_config(folder).get("base_model_name_or_path")), recorded.base
    if named not in (own.name, own.hub) and not Path(named).is_absolute():
        raise VerifyError("base", f"adapter_config.json names {named}, and the record says {own.name}")
    try:
        if base is None and Path(named).is_absolute() and Path(named).is_dir():
            return Path(named)  # what PEFT would load; its tensors are compared with the record
        return Path(locate(base) if base else locate(own.name, own.commit))
    except ModelError as error:
        raise VerifyError("base", f"{error}; name the base's place by --base") from error


def _same_base(path: Path, recorded: Record) -> str:
    """Check that the base is the one in the record."""
    found = record.digest(record.stored(path))
    if found != recorded.base.sha256:
        what = (
            f"{path} is another base: SHA-256 of its tensors {found[:16]}..., recorded {recorded.base.sha256[:16]}..."
        )
        raise VerifyError("base", what)
    return f"{recorded.base.name}, SHA-256 of its tensors {found[:16]}..."


def _load(folder: Path, recorded: Record) -> nn.Module:
    """Load a whole model, or a base as the adapter was trained over it."""
    try:
        return load_model(str(folder), recorded.dtype, recorded.quantize)
    except ModelError as error:
        raise VerifyError("log-probabilities", str(error)) from error


def _adapter_logprobs(base: Path, folder: Path, recorded: Record) -> str:
    """Check the log-probabilities of the base with the adapter over it."""
    model = _load(base, recorded)
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False, torch_device="cpu").eval()
    except (ValueError, RuntimeError) as error:
        raise VerifyError("log-probabilities", f"the adapter does not fit its base: {error}") from error
    found = _model_logprobs(adapted, recorded)
    with adapted.disable_adapter():
        return f"{found}; the base alone is off by {_gap(adapted, recorded):.2g}"


def _model_logprobs(model: nn.Module, recorded: Record) -> str:
    """Check the log-probabilities of the reference sequences."""
    gap, allowed = _gap(model, recorded), ALLOWED[recorded.dtype] / min(1.0, recorded.temperature)
    what = f"largest gap {gap:.2g} nats"
    if not gap <= allowed:  # NaN too
        raise VerifyError(
            "log-probabilities", f"{what}, allowed {allowed:.2g}: this is not the policy that was trained"
        )
    return f"{sum(len(sequence.logprob) for sequence in recorded.probes)}, {what}, allowed {allowed:.2g}"


@torch.no_grad()
def _gap(model: nn.Module, recorded: Record) -> float:
    """Largest difference, in nats, between the model's log-probabilities and those recorded; NaN where one is."""
    vocabulary = model.get_input_embeddings().num_embeddings
    gaps = []
    for sequence in recorded.probes:
        if max(sequence.ids) >= vocabulary or len(sequence.logprob) != len(sequence.ids) - 1:
            raise VerifyError("log-probabilities", "the record's reference sequences are not of this model")
        ids = torch.tensor(sequence.ids, device=model.device)  # a quantised base is on a GPU where there is one
        logits = model(ids[None]).logits[0, :-1].float() / recorded.temperature
        logprob = logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
        gaps.append((logprob.cpu() - torch.tensor(sequence.logprob)).abs())
    return float(torch.cat(gaps).max())
