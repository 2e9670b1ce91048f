"""What a vLLM server's workers do for the trainer beside what vLLM brings: adapters as bytes, facts, rows of tables.

A server imports it by `--worker-extension-cls`, and with it the way that weights travel on CPUs.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from align.rollout import (
    server_facts,
    tables,
    weight_transfer,  # noqa: F401  registers the transfer over gloo
)
from align.rollout.heads import leave_head


class Extension:
    """Mixed into a server's workers: what the trainer calls there by name."""

    def align_facts(self) -> dict[str, Any]:
        """What the server is, and what it adds to every request: see `server_facts`."""
        return server_facts.of(self.vllm_config, self.device.type)

    def align_put(self, name: str, files: dict[str, str]) -> str:
        """Write the files of an adapter, base64 of each, to this machine's disk; the folder."""
        folder = self._align_folder() / _named(name)
        if not folder.parent.exists():  # removed when this process ends, also one in which atexit is not run
            Finalize(None, shutil.rmtree, (folder.parent, True), exitpriority=0)
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            part = folder / f".{_named(file)}.{os.getpid()}"  # other workers write the same
            part.write_bytes(base64.b64decode(data))
            part.rename(folder / file)
        if self.device.type == "cpu":
            leave_head(self.get_model())
        return str(folder)

    def align_drop(self, name: str) -> None:
        """Remove the files of an adapter."""
        shutil.rmtree(self._align_folder() / _named(name), ignore_errors=True)

    def align_vocabulary(self) -> dict[str, str]:
        """The rows of the tables, as base64 of their [V,8] float32."""
        found = tables.read(self.get_model())
        return {name: base64.b64encode(rows.numpy().tobytes()).decode() for name, rows in found.items()}

    def _align_folder(self) -> Path:
        """The same on all workers of a server, and on no other."""
        base = Path(tempfile.gettempdir()) / f"align-adapters-{os.getuid()}"
        base.mkdir(mode=0o700, exist_ok=True)
        if base.stat().st_uid != os.getuid():
            raise PermissionError(f"{base} belongs to another user; set TMPDIR to a folder of your own")
        return base / self.vllm_config.instance_id


def _named(name: str) -> str:
    """A name within a folder. Raises `ValueError` for one that leads out of it."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"{name!r} is no name of an adapter or a file of one")
    return name
