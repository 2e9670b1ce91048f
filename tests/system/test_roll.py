"""Who is there, who is gone, and what is said of it."""

import json
import time

import pytest
from torch.distributed import TCPStore

from align.system import roll
from align.system.roll import NotJoined, Roll, call, not_there, uneven


@pytest.fixture
def store():
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def two(store, monkeypatch):
    """The environment of the first of two machines with a process each."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "GROUP_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    for name, value in {**where, "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(roll, "BEAT_S", 0.1)
    monkeypatch.setattr(roll, "DEAD_S", 0.5)
    monkeypatch.setattr(roll, "_roll", None)
    yield store
    roll.close()


def comes(store, place=1, size=1):
    """The other machine signs once."""
    store.set(f"align/beat/{place}", "0")
    store.set(f"align/joined/{place}", json.dumps(["b", place, size]))


def test_who_does_not_come_is_named(two):
    with pytest.raises(NotJoined, match=r"0.3 s --machine_rank 1 has not come to .* \(--machine_rank 0\); look"):
        call(0.3)
    assert roll.gone() is None


def test_machines_with_other_numbers_of_processes_are_refused(two):
    comes(two, size=4)
    with pytest.raises(NotJoined, match="different numbers of processes: 1 on .* and 4 on b; start all with the same"):
        call(5)


def test_a_machine_that_signs_no_more_is_named(two):
    comes(two)
    call(5)
    assert roll.gone().startswith("b (rank 1) is gone: killed, crashed or cut off, it has not been heard for 0.5 s")


def test_why_a_machine_ended_is_told(two):
    comes(two)
    call(5)
    two.set("align/left/1", "b (rank 1) ended: the disk is full")
    assert roll.gone().startswith("b (rank 1) ended: the disk is full; the newest checkpoint that all nodes have")
    told = roll.lost(roll._roll, ["b (rank 1)"], 90)  # a node that has ended is silent too
    assert told.startswith("b (rank 1) ended: the disk is full; ")
    assert roll.lost(roll._roll, [roll._roll.names[0]], 90).endswith(f"not been heard for 90 s; {roll.ON}")  # no store


def test_all_that_sign_are_there(two, monkeypatch):
    comes(two)
    call(5)
    other = Roll(two, 1, ["a", "b"], [0.0] * 2, [b""] * 2)
    until = time.monotonic() + 2
    monkeypatch.setattr(roll._roll, "left", lambda: other.beat(True) or [])  # it signs whenever it is looked for
    assert roll.gone() is None and time.monotonic() < until


def test_without_the_store_the_first_machine_is_gone():
    now = time.monotonic()
    assert Roll(None, 2, ["a", "b", "c"], [now - 60] * 3, [b""] * 3).silent(30) == ["a"]
    assert Roll(None, 0, ["a", "b", "c"], [now, now - 60, now], [b""] * 3).silent(30) == ["b"]


def test_one_machine_needs_no_roll(monkeypatch):
    monkeypatch.setattr(roll, "_roll", None)
    roll.leave("it is over")
    assert roll.gone() is None and uneven([["a", 0, 2], ["b", 2, 2]]) is None
    assert "after 9 s --machine_rank 1 and --machine_rank 2 has not" in not_there([["a", 0, 1], None, None], 9)
