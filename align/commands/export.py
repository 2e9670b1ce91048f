"""`python -m align export`: the record of a run in another library's format."""

from __future__ import annotations

import json
from pathlib import Path

from align.config.problems import nearest
from align.result import verifiers
from align.result.samples import ReplayError, read
from align.system import files
from align.system.parts import parts

FORMATS = {"verifiers": ("traces.jsonl", verifiers.episode)}  # {name: (file, a line's object)}

RECORD = "samples.jsonl"

USER_ERRORS = (ReplayError, files.DiskError)


def export(path: Path, kind: str, out: Path | None) -> str:
    """Write a run's folder, or a file of its lines, as `kind`, and say where that is, and of how many samples.

    `out` is by default the format's own name, in the run's folder. Raises `ReplayError` for another format, where there
    is no sample, and where the file is there already; `DiskError` where it cannot be written.
    """
    if kind not in FORMATS:
        raise ReplayError(f"--format: no format is called {kind!r}; {nearest(kind, FORMATS)}")
    name, convert = FORMATS[kind]
    record = path / RECORD if path.is_dir() else path
    if not any(map(Path.is_file, parts(record))):
        raise ReplayError(f"{record}: missing, so there is no sample to export; name the folder of a run")
    out = out or record.with_name(name)
    if out.exists():
        raise ReplayError(f"{out}: is there already; remove it, or name another file by --out")
    lines = read(record)
    run = record.resolve().parent.name
    sampled = {place: line for place, line in lines.items() if line.chosen is None}
    if not sampled:
        raise ReplayError(f"{record}: has pairs of the data only, which no policy sampled; nothing is exported")
    texts = [json.dumps(convert(run, place, line), ensure_ascii=False) for place, line in sampled.items()]
    files.write_whole(out, "".join(f"{text}\n" for text in texts))
    left = f", {len(lines) - len(sampled)} lines of pairs left out" if len(lines) > len(sampled) else ""
    return f"{out} ({len(sampled)} samples{left})"
