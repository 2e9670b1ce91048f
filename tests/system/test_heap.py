"""What is freed inside goes back to the system."""

import subprocess
import sys

# in a process of its own: what others have freed before decides where blocks lie
PROGRAM = """
import torch
from align.system.heap import given_back

def resident():
    [line] = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
    return int(line.split()[1]) // 2**10

with given_back():
    blocks, pins = [], []
    for _ in range(32):
        blocks.append(torch.ones(2**20))  # 4 MiB
        pins.append(bytearray(50_000))  # behind each one something that stays
    full = resident()
    blocks.clear()
    print(full - resident())
"""


def test_freed_blocks_go_back():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100  # MiB
