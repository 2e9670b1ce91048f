"""Describe what the processes of a run compute on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import psutil
import torch

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """What one process computes on: a GPU of its own, or the machine that it shares with the others."""

    kind: Literal["cpu", "cuda"]
    gib: float  # memory of the GPU, or of the machine
    bfloat16: bool = True  # whether it multiplies bfloat16 matrices as such

    @property
    def is_gpu(self) -> bool:
        """Whether each process has a GPU."""
        return self.kind == "cuda"


def free_bytes() -> int:
    """Bytes of this process's GPU that nobody holds, once torch has given back what it only keeps."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def gpus() -> int:
    """Number of GPUs of this machine that a process can have for itself; slices of a GPU (MIG) count as torch sees
    them."""
    return torch.cuda.device_count()


def here() -> Hardware:
    """The hardware of this machine; of several GPUs the first."""
    if not torch.cuda.is_available():
        return Hardware("cpu", psutil.virtual_memory().total / GIB)
    gib = torch.cuda.get_device_properties(0).total_memory / GIB
    return Hardware("cuda", gib, torch.cuda.is_bf16_supported(including_emulation=False))
