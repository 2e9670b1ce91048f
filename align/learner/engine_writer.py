"""How DeepSpeed writes its files: a rank that cannot write one raises when all are through."""

from __future__ import annotations

from pathlib import Path

from deepspeed import DeepSpeedEngine
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine


class KeepsFailures(TorchCheckpointEngine):
    """Writes DeepSpeed's files. Its ranks wait for each other between them, so a rank that cannot write one goes on
    with the others and raises afterwards."""

    failure: OSError | RuntimeError | None = None

    def save(self, state_dict: dict, path: str) -> None:
        try:
            super().save(state_dict, path)
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            self.failure = self.failure or error
            Path(path).unlink(missing_ok=True)  # makes room for what the others still write

    def raise_failure(self) -> None:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure


def keep_failures(engine: DeepSpeedEngine) -> KeepsFailures:
    """Make the engine write its checkpoints so; of its own accord it would also copy a script between the barriers."""
    engine.checkpoint_engine = KeepsFailures(engine._config)
    engine._copy_recovery_script = lambda folder: None
    return engine.checkpoint_engine
