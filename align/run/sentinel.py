"""Acts on what the sentinel finds: warns, stops the run, or takes it back to the last good checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from align.checkpoint import agreement, checkpoint
from align.config.sentinel import Action, Alarm, Step, alarms
from align.objectives.objective import Objective
from align.ranks import exchange
from align.rollout.sources import SourceBatch
from align.run.log import RunLog
from align.run.setup import Run
from align.system import files
from align.system.clock import Clock
from align.system.node import of_main

STOP, ROLLBACK = "sentinel/stop", "sentinel/rollback"  # metrics of a step after which the sentinel acted


class SentinelError(RuntimeError):
    """A rule stopped the run."""


@dataclass(frozen=True)
class Verdict:
    """The alarms of a step, and what is done about them."""

    alarms: tuple[Alarm, ...] = ()
    action: Action = "ignore"
    good: Path | None = None  # the checkpoint to go back to

    @property
    def flags(self) -> dict[str, int]:
        """The metrics that note it in the step's line."""
        acted = {"stop": {STOP: 1}, "rollback": {ROLLBACK: 1}}
        return {alarm.flag: 1 for alarm in self.alarms} | acted.get(self.action, {})


class Watch:
    """Looks at every step. What it remembers is what metrics.jsonl says, so a resumed run goes on with it."""

    def __init__(self, run: Run, log: RunLog):
        self.run, self.log = run, log
        self.sentinel = run.experiment.recipe.sentinel
        rows = of_main(log.steps)
        self.rollbacks = sum(ROLLBACK in row for row in rows)
        self.steps = since_action(rows)

    def judge(self, step: int, metrics: dict[str, float]) -> Verdict:
        """The verdict on the step that was just done, the same on all ranks."""
        self.steps.append({"step": step, **metrics})
        correct, objectives = self.run.experiment.correct, self.run.experiment.objectives
        found = alarms(self.sentinel, self.steps, correct.reward if correct else None)
        found += [Alarm(name, warning) for name, warning in warnings_of(objectives, metrics).items()]
        recent = self.steps[-self.sentinel.remind - 1 : -1]
        told = {flag for row in recent for flag in row}
        found = tuple(alarm for alarm in found if alarm.action != "warn" or alarm.flag not in told)
        verdict = self._verdict(found, step)
        self.steps[-1] |= verdict.flags
        return verdict

    def _verdict(self, found: tuple[Alarm, ...], step: int) -> Verdict:
        """Choose the strictest action that an alarm asks for and that is possible."""
        actions = {alarm.action for alarm in found}
        if "stop" in actions:
            return Verdict(found, "stop")
        if "rollback" not in actions:
            return Verdict(found, "warn" if found else "ignore")
        # when the first of them began to hold
        began = step - max(alarm.for_steps for alarm in found if alarm.action == "rollback")
        good = self._last_good(began)
        left = self.rollbacks < self.sentinel.rollbacks
        return Verdict(found, "rollback", good) if good and left else Verdict(found, "stop")

    def _last_good(self, before: int) -> Path | None:
        """The newest checkpoint that is whole on all nodes and no later than the step `before`. Collective."""
        folder, node = self.log.out / "checkpoints", self.run.node
        if node.alone:
            return of_main(lambda: last_good(folder, before))
        step = agreement.newest(folder, node, before)
        return None if step is None else folder / f"step_{step}"

    def act(self, step: int, verdict: Verdict, batches: Sequence[SourceBatch]) -> None:
        """Do what the verdict says. Raises `SentinelError` after the run was saved."""
        if self.sentinel.non_finite.dumped(self.steps):
            dump(self.log.out / "dumps" / f"step_{step}", self.run, batches)
        if verdict.action == "rollback":
            self._roll_back(step, verdict.good)
        elif verdict.action == "stop":
            self._stop(step, verdict.alarms)

    def _roll_back(self, step: int, good: Path) -> None:
        """Restore weights, optimiser and transforms; the data goes on, since the same again would end the same.
        Saved at once: a resumed run goes on behind it."""
        accelerator = self.run.accelerator
        accelerator.wait_for_everyone()  # all have found it
        if self.run.node.writes:
            checkpoint.set_later_aside(good.parent, checkpoint.read(good).step)
            self.run.journal.forget(step + 1)  # also what was sampled ahead by the policy that is given up
        accelerator.wait_for_everyone()
        checkpoint.load(good, self.run.learner, self.run.experiment.objectives)
        if self.run.sampler:
            self.run.sampler.sync(self.run.learner, Clock())
        self.log.to_disk()
        self.run.save(step)
        self.rollbacks += 1
        self.steps = []

    def _stop(self, step: int, found: Sequence[Alarm]) -> None:
        """Save the run, then raise `SentinelError` with the causes and a way on."""
        out = self.log.out
        self.log.to_disk()
        self.run.save(step)
        causes = [alarm for alarm in found if alarm.action in ("stop", "rollback")]
        lines = [f"step {step}: {alarm}" for alarm in causes]
        if all(alarm.action == "rollback" for alarm in causes):
            often = self.rollbacks >= self.sentinel.rollbacks
            why = f"it was rolled back {self.rollbacks} times" if often else "no checkpoint is from before that"
            lines.append(f"the run stops: {why}")
        lines.append(
            f"saved; to go on: run.resume={out}, and sentinel.{causes[0].rule}.action=warn to take it as it is"
        )
        raise SentinelError("\n".join(lines))


def since_action(rows: Sequence[Step]) -> list[Step]:
    """The rows behind the last one after which the sentinel acted."""
    acted = [i for i, row in enumerate(rows) if STOP in row or ROLLBACK in row]
    return list(rows[acted[-1] + 1 :] if acted else rows)


def last_good(folder: Path, before: int) -> Path | None:
    """The newest checkpoint in `folder` that is whole and no later than the step `before`."""
    whole = (path for path in checkpoint.newest_first(folder) if checkpoint.damage(path) is None)
    return next((path for path in whole if checkpoint.read(path).step <= before), None)


def warnings_of(objectives: Sequence[Objective], metrics: dict[str, float]) -> dict[str, str]:
    """{loss: what it has to say about the metrics of a step}."""
    out = {}
    for objective in objectives:
        prefix = f"{objective.name}/" if len(objectives) > 1 else ""
        mine = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
        said = {f"{prefix}{loss.name}": loss.warn(mine) for loss in objective.losses}
        out |= {name: warning for name, warning in said.items() if warning is not None}
    return out


def dump(path: Path, run: Run, batches: Sequence[SourceBatch]) -> None:
    """Write a step's batches as the objectives credited them, with the policy's log-probabilities as `logprob`: all
    tensors to `path.safetensors`, and each row's texts to `path.jsonl` with the names of what is not finite in it."""
    tensors, rows = {}, []
    for source, batch_of_source in zip(run.loop.sources, batches, strict=True):
        for credited in batch_of_source.credited:
            batch, key = exchange.whole(credited.batch), f"{source.name}/{credited.objective.name}"
            there = exchange.columns_of(batch)
            batch = replace(batch, row=None)
            there["logprob"] = run.learner.score(batch, batch.kept)["logprob"]
            tensors |= {f"{key}/{quantity}": value.clone() for quantity, value in there.items()}
            bad = {quantity: unfinite(value, batch.mask) for quantity, value in there.items()}
            for i, length in enumerate(batch.size.tolist()):
                texts = (batch.prompt_ids[i], batch.response_ids[i, :length].tolist())
                prompt, response = run.tokenizer.batch_decode(texts)
                row = {"batch": key, "row": i, "group": int(batch.group[i]), "prompt": prompt, "response": response}
                rows.append({**row, "not_finite": [quantity for quantity, rows_B in bad.items() if rows_B[i]]})
    if run.accelerator.is_main_process:
        with files.writing(path):
            path.parent.mkdir(exist_ok=True)
            save_file(tensors, path.with_suffix(".safetensors"))
            path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.accelerator.wait_for_everyone()


def unfinite(value: Tensor, mask_BT: Tensor) -> Tensor:
    """[B] bool: rows of [B] or [B,T] values with one that is not finite inside the response."""
    wrong = ~torch.isfinite(value)
    return wrong if value.dim() == 1 else (wrong & mask_BT).any(1)
