"""What is freed inside goes back to the system."""

from pathlib import Path

import torch

from align.system.heap import given_back


def resident() -> int:
    """MiB of this process's own memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) // 2**10


def test_freed_blocks_go_back():
    with given_back():
        blocks, pins = [], []
        for _ in range(32):
            blocks.append(torch.ones(2**20))  # 4 MiB
            pins.append(bytearray(50_000))  # behind each one something that stays
        full = resident()
        blocks.clear()
        assert resident() < full - 100 and len(pins) == 32
