"""The files of a run: metrics.jsonl, samples.jsonl, greedy.jsonl, config.yaml, versions.json; and the trackers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import chain, takewhile
from pathlib import Path
from types import MappingProxyType

import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object

from align.checkpoint.checkpoint import CheckpointError
from align.learner.learner import Outputs
from align.loop import PHASES
from align.result.samples import ends_whole
from align.rollout.rollouts import Rollout
from align.rollout.sources import SourceBatch
from align.run.samples import Record
from align.run.terminal import say
from align.system import files, parts
from align.system.blame import no_exit, user_line
from align.system.clock import Clock

EVALUATION = b'"eval/'

NO_CALLBACKS: Mapping[str, Callable] = MappingProxyType({})

METRICS, SAMPLES, GREEDY = LINES = ("metrics.jsonl", "samples.jsonl", "greedy.jsonl")

PAGES = ("trackio", "wandb")


class CallbackError(RuntimeError):
    """A function of run.callbacks raised."""


class RunLog:
    """Writes on the main process; the other ranks may call it too. A resumed run keeps the lines up to its start.

    An evaluation is there once its line in metrics.jsonl is, which is written after its responses.
    """

    def __init__(
        self,
        out: Path,
        accelerator: Accelerator,
        start: int,
        callbacks: Mapping[str, Callable] = NO_CALLBACKS,
        record: Record | None = None,
    ):
        self.out, self.accelerator, self.callbacks, self.record = out, accelerator, callbacks, record or Record()
        self.writes = accelerator.is_main_process
        self._files = [out / name for name in LINES]
        self._metrics, self._samples, self._greedy = self._files
        if self.writes:
            out.mkdir(parents=True, exist_ok=True)
            for path in (self._metrics, self._samples):
                parts.cut(path, start, step_of)
            parts.cut(self._greedy, _last_evaluation(self._metrics), step_of)
            self.record.last |= dict.fromkeys(ends_whole(self._samples, start), start)
        accelerator.wait_for_everyone()

    def describe(self, config: dict, versions: dict[str, str], changes: Sequence[str] = ()) -> None:
        """The resolved recipe and the versions, beside the metrics and to the trackers; see `describe`."""
        if self.writes:
            describe(self.out, config, versions, changes)
        self.accelerator.init_trackers("align", config=_flat(config))

    def step(
        self,
        step: int,
        metrics: dict[str, float],
        batches: Sequence[SourceBatch],
        outputs: Sequence[Outputs] = (),
    ) -> None:
        """Write a step's responses with their credit, then its metrics, which tell the seconds that this took;
        `step` counts from 1. Collective.

        `outputs` are this rank's, of the step's first update.
        """
        clock = Clock()
        with clock("record"):
            if self.record.samples != "none":
                outputs = gather_object(list(outputs))
            if self.writes:
                self._write_samples(self.record.lines(step, batches, outputs))
        metrics = {**metrics, **clock.seconds()}
        self._append(self._metrics, [{"step": step, **metrics}])
        self._tell(step, metrics)

    def evaluation(self, step: int, metrics: dict[str, float], greedy: Sequence[Rollout]) -> None:
        """Write an evaluation after so many steps: its greedy responses, then its metrics."""
        rows = [{"step": step, "prompt": question(r), "response": r.text, "reward": r.reward} for r in greedy]
        self._append(self._greedy, rows)
        self._append(self._metrics, [{"step": step, **metrics}])
        self._tell(step, metrics)

    def evaluations(self) -> list[dict[str, float]]:
        """All evaluations of this run so far; a resumed one has those before its start."""
        rows = _evaluations(self._metrics)
        return [{name: value for name, value in row.items() if name != "step"} for row in rows]

    def evaluated(self, step: int) -> bool:
        """Whether there is an evaluation after so many steps."""
        return step in self.evaluated_steps()

    def evaluated_steps(self) -> list[int]:
        """After how many steps there are evaluations, in order."""
        return [row["step"] for row in _evaluations(self._metrics)]

    def steps(self) -> list[dict[str, float]]:
        """The metrics of all steps of this run so far, without evaluations."""
        return [row for row in _read(self._metrics) if "loss" in row]

    def training_seconds(self) -> float:
        """Seconds of all steps so far."""
        return sum(row.get(f"seconds/{phase}", 0.0) for row in _read(self._metrics) for phase in PHASES)

    def syncs(self) -> dict[str, float] | None:
        """How often sampler and trainer were compared after a sync, and their largest gap in nats."""
        gaps = [row["sync/gap_max"] for row in _read(self._metrics) if "sync/gap_max" in row]
        return {"count": len(gaps), "gap_max": max(gaps)} if gaps else None

    def greedy_samples(self) -> tuple[list[dict], list[dict]]:
        """(before, after): greedy responses to the held-out prompts at the first and the last evaluation."""
        from_start = files.json_lines(_lines(self._greedy))
        from_end = files.json_lines(line for _, line in files.backwards(self._greedy))
        return [*_of_first_step(from_start)], [*_of_first_step(from_end)][::-1]

    def page(self, page: Path, step: int) -> None:
        """Give the page to the trackers that show pages, whose `Html` classes take the same arguments."""
        for tracker in self.accelerator.trackers if self.writes else ():
            if tracker.name in PAGES:
                shown = import_module(tracker.name).Html(str(page), inject=False)
                tracker.log({"xray": shown}, step=step)

    def _tell(self, step: int, metrics: dict[str, float]) -> None:
        """Give the metrics to the trackers, and on the main process to the callbacks. Raises `CallbackError`."""
        self.accelerator.log(metrics, step=step)
        for path, function in self.callbacks.items() if self.writes else ():
            try:
                with no_exit(path):
                    function(step, dict(metrics))
            except Exception as error:  # the function is the user's: whatever it raises belongs to its name
                where = f" ({line})" if (line := user_line(error)) else ""
                what = f"{path} raised {type(error).__name__} after step {step}: {error}{where}"
                raise CallbackError(f"run.callbacks: {what}; mend it, then go on with --resume") from error

    def _append(self, path: Path, rows: list[dict]) -> None:
        if self.writes:
            self._write(path, map(json.dumps, rows))

    def _write_samples(self, lines: Iterable[str]) -> None:
        """Write the lines of a step; the parts of the record are divided between steps."""
        parts.turn(self._samples, self.record.part_bytes)
        self._write(self._samples, lines)

    def _write(self, path: Path, lines: Iterable[str]) -> None:
        with files.writing(path), path.open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def to_disk(self) -> None:
        """Wait until the lines are on the disk: before a checkpoint, which must not outlive them."""
        for path in filter(Path.exists, self._files if self.writes else ()):
            files.to_disk(path)


def describe(out: Path, config: dict, versions: dict[str, str], changes: Sequence[str] = ()) -> None:
    """Write the resolved recipe that a run follows now, below a line for each change on the way, and the versions."""
    text = "".join(f"{line}\n" for line in changes) + yaml.safe_dump(config, sort_keys=False)
    files.write_whole(out / "config.yaml", text)
    files.write_whole(out / "versions.json", json.dumps(versions, indent=2) + "\n")


def check_lines(path: Path, start: int) -> None:
    """Look for damage in a file of lines up to the step `start`, which the checkpoint of that step goes with.

    A line that cannot be read is told where it stands behind them, as a power cut may leave it: it is cut off. Raises
    `CheckpointError` where it stands among them.
    """
    bad, among, done = None, False, path.name != METRICS or start == 0
    for number, line in enumerate(_lines(path), 1):
        row = _row(line)
        if row is None:
            bad = bad or number * bool(line.strip())
        elif row["step"] <= start:
            among = bool(bad)
            done = done or ("loss" in row and row["step"] == start)
    if not bad:
        return
    if among or not done:
        what = f"line {bad} cannot be read, and is of the steps that are done"
        raise CheckpointError(f"run.resume: {path}: {what}; mend that line or take it out")
    say(f"{path}: line {bad}, behind step {start}, cannot be read; it is left out")


def step_of(line: bytes) -> int | None:
    """The step of a line; None where it is damaged."""
    row = _row(line)
    return None if row is None else row["step"]


def _evaluations(metrics: Path) -> list[dict]:
    """The rows of evaluations; the lines of steps, which are most, are not parsed."""
    return [*filter(_is_evaluation, files.json_lines(line for line in _lines(metrics) if EVALUATION in line))]


def _last_evaluation(metrics: Path) -> int:
    """The step of the last evaluation; -1 where there is none."""
    lines = (line for _, line in files.backwards(metrics) if EVALUATION in line) if metrics.exists() else ()
    return next((row["step"] for row in map(json.loads, lines) if _is_evaluation(row)), -1)


def _of_first_step(rows: Iterable[dict]) -> Iterator[dict]:
    """The rows before the first one of another step."""
    rows = iter(rows)
    first = next(rows)
    return chain([first], takewhile(lambda row: row["step"] == first["step"], rows))


def _is_evaluation(row: dict) -> bool:
    return any(name.startswith("eval/") for name in row)  # so `EVALUATION` is in its line


def question(rollout: Rollout) -> str:
    """The prompt as a person reads it: the last message of a conversation, without the template around it."""
    prompt = rollout.prompt.prompt
    return prompt if isinstance(prompt, str) else prompt[-1].get("content") or ""


def _read(path: Path) -> list[dict]:
    """The rows of a file."""
    return list(files.json_lines(_lines(path)))


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file; a last one without its end was cut when the run was killed and is left out."""
    if path.exists():
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))


def _row(line: bytes) -> dict | None:
    """The row of a line; None where it is none."""
    try:
        row = json.loads(line.decode())
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _flat(config: dict, prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested keys joined by dots: trackers take plain values only."""
    out = {}
    for name, value in config.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value if isinstance(value, (str, int, float, bool)) else json.dumps(value)
    return out
