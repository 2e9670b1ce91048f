"""Write DeepSpeed's files so that a rank that cannot write one raises only when all ranks are through."""

from __future__ import annotations

from pathlib import Path

from deepspeed import DeepSpeedEngine
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from align.system.node import Node


class KeepsFailures(TorchCheckpointEngine):
    """Writes DeepSpeed's files and keeps a failure for later: ranks wait for each other between files, so one that
    raised at once would leave the others waiting."""

    failure: OSError | RuntimeError | None = None

    def save(self, state_dict: dict, path: str) -> None:
        """Write one file, or keep why not."""
        try:
            super().save(state_dict, path)
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            self.failure = self.failure or error
            Path(path).unlink(missing_ok=True)  # makes room for what the others still write

    def raise_failure(self) -> None:
        """Raise the first failure kept, if there is one, and forget it."""
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure


def keep_failures(engine: DeepSpeedEngine) -> KeepsFailures:
    """Make the engine write its checkpoints this way; by itself it would also copy a script between the barriers."""
    engine.checkpoint_engine = KeepsFailures(engine._config)
    engine._copy_recovery_script = lambda folder: None
    return engine.checkpoint_engine


def write_on_each_node(engine: DeepSpeedEngine, node: Node) -> None:
    """Have the first process of each node write what is the same on all: its own file of it is what each loads.

    DeepSpeed's `use_node_local_storage` would have it written by each machine, also where several share a folder.
    """
    engine.save_non_zero_checkpoint = engine.save_non_zero_checkpoint or node.writes
