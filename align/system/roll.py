"""Know which machines of a run are there: each signs on a store that all reach, at the start and again and again.

A collective whose partner is gone fails at once over gloo on most ways to end, and may wait for hours where a machine
lost its power, or over NCCL; and what it raises names at most an address. The store is that of `accelerate launch` on
the first node.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

from torch.distributed import DistStoreError, TCPStore

from align.system.node import said
from align.system.parent import say_last

BEAT_S = 3.0  # between two signatures

DEAD_S = 12.0  # without a signature, where a collective has failed: who signs no more is gone

SILENT_S = 90.0  # without one in any case; a machine may be busy, as where it writes to a disk that is full

JOIN = "ALIGN_JOIN_S"  # seconds that machines wait for each other at the start

ON = "the newest checkpoint that all nodes have is whole: start every node again with --resume"


class NotJoined(RuntimeError):
    """A machine of the run did not come."""


@dataclass
class Roll:
    """The machines of a run, as one of them sees them."""

    store: TCPStore
    own: int  # this machine's place among them
    names: Sequence[str]
    heard: list[float] = field(default_factory=list)  # when each signed for the last time, on this machine's clock
    signed: list[bytes] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def beat(self, signs: bool) -> None:
        """Sign where this process does so for its machine, and look at what all have signed."""
        if signs:
            self.store.set(f"align/beat/{self.own}", str(time.monotonic()))
        found = self.store.multi_get([f"align/beat/{place}" for place in range(len(self.names))])
        now = time.monotonic()
        for place, value in enumerate(found):
            if value != self.signed[place]:
                self.signed[place], self.heard[place] = value, now

    def silent(self, seconds: float) -> list[str]:
        """The machines that have not signed for so long; the first alone where its store is gone, without which nobody
        is heard."""
        now = time.monotonic()
        late = [place for place, heard in enumerate(self.heard) if now - heard > seconds and place != self.own]
        return [self.names[0]] if 0 in late else [self.names[place] for place in late]

    def left(self) -> list[str]:
        """What machines said of why they end."""
        with suppress(DistStoreError, RuntimeError):
            keys = [f"align/left/{place}" for place in range(len(self.names)) if place != self.own]
            return [self.store.get(key).decode() for key in keys if self.store.check([key])]
        return []


_roll: Roll | None = None  # of this process, where its run has several machines


def call(seconds: float) -> None:
    """Wait until all machines of the run are there, and begin to sign. Raises `NotJoined`, which names the others."""
    global _roll
    count, own = int(os.environ["GROUP_WORLD_SIZE"]), int(os.environ["GROUP_RANK"])
    local, mine = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    first = int(os.environ["RANK"]) - mine
    address, patience = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timedelta(seconds=seconds)
    store = TCPStore(*address, is_master=False, wait_for_workers=False, timeout=patience)
    if mine == 0:
        store.set(f"align/beat/{own}", "0")
        store.set(f"align/joined/{own}", json.dumps([platform.node(), first, local]))
    keys = [f"align/joined/{place}" for place in range(count)]
    until = time.monotonic() + seconds
    while not store.check(keys):
        if time.monotonic() > until:
            raise NotJoined(not_there([json.loads(store.get(k)) if store.check([k]) else None for k in keys], seconds))
        time.sleep(0.2)
    joined = [json.loads(value) for value in store.multi_get(keys)]
    if problem := uneven(joined):
        raise NotJoined(problem)
    names = [f"{host} ({said(tuple(range(start, start + size)))})" for host, start, size in joined]
    _roll = Roll(store, own, names, [time.monotonic()] * count, [b"0"] * count)
    for task, arguments in ((_sign, (_roll, mine == 0)), (_judge, (_roll,))):
        threading.Thread(target=task, args=arguments, daemon=True).start()


def not_there(joined: Sequence[Sequence | None], seconds: float) -> str:
    """Say which machines did not come; `joined` has the name, first rank and processes of each that did."""
    missing = [f"--machine_rank {place}" for place, one in enumerate(joined) if one is None]
    there = [f"{one[0]} (--machine_rank {place})" for place, one in enumerate(joined) if one is not None]
    what = f"after {seconds:g} s {' and '.join(missing)} has not come to {', '.join(there)}"
    return f"{what}; look at what it printed, and start all nodes again; {JOIN} sets the seconds"


def uneven(joined: Sequence[Sequence]) -> str | None:
    """Why machines do not fit together; None where they do."""
    sizes = [size for *_, size in joined]
    if len(set(sizes)) == 1:
        return None
    told = " and ".join(f"{size} on {host}" for host, _, size in joined)
    return f"the nodes have different numbers of processes: {told}; start all with the same --num_processes"


def leave(why: str) -> None:
    """Tell the other machines why this one ends."""
    if _roll is not None:
        with suppress(DistStoreError, RuntimeError):
            name, line = _roll.names[_roll.own], why.partition("\n")[0]
            _roll.store.set(f"align/left/{_roll.own}", f"{name} ended: {line}")


def gone() -> str | None:
    """After a collective has failed: which machine is gone, or why it ended, and the way on; None where all are there,
    or the run has one machine only. Takes up to about 20 s."""
    if _roll is None:
        return None
    until = time.monotonic() + DEAD_S + 3 * BEAT_S
    while time.monotonic() < until:
        silent = _roll.silent(DEAD_S)
        if silent or _roll.left():
            return lost(_roll, silent, DEAD_S)
        time.sleep(0.5)
    return None


def lost(roll: Roll, silent: Sequence[str], seconds: float) -> str:
    """Say what machines said of why they end, else which have been silent for so long; and the way on."""
    told = [] if roll.names[0] in silent else roll.left()  # its store is gone too
    what = f"{' and '.join(silent)} is gone: killed, crashed or cut off, it has not been heard for {seconds:g} s"
    return f"{'; '.join(told) or what}; {ON}"


def close() -> None:
    """Sign no more: the run is over."""
    if _roll is not None:
        _roll.ended.set()


def _sign(roll: Roll, signs: bool) -> None:
    """Sign until the run is over. A call to a machine without power may take minutes, so another thread judges."""
    while not roll.ended.wait(BEAT_S):
        with suppress(DistStoreError, RuntimeError):  # the first node is gone; its silence tells
            roll.beat(signs)


def _judge(roll: Roll) -> None:
    """End this process where a machine has been silent for too long: its main thread may wait for that one for good."""
    while not roll.ended.wait(BEAT_S):
        if silent := roll.silent(SILENT_S):
            say_last(lost(roll, silent, SILENT_S))
            os._exit(1)
