"""Processes of user code: what they are given."""

import os
from contextlib import closing

from align.rollout.server_token import TOKEN
from align.system.child import end, spawn


def serve(pipe, parent):
    """What the process runs: it says the variables that it has."""
    with os.fdopen(pipe, "wb") as file:
        file.write("\0".join(os.environ).encode())


def test_user_code_does_not_get_the_token_of_the_servers(monkeypatch):
    monkeypatch.setenv(TOKEN, "secret")
    monkeypatch.setenv("OF_THE_USER", "1")
    process, ours = spawn("system.test_child", None, {"ADDED": "1"})
    with closing(ours):
        ours.settimeout(60)
        names = b"".join(iter(lambda: ours.recv(1 << 16), b"")).decode().split("\0")
    end(process)
    assert {"OF_THE_USER", "ADDED"} <= set(names) and TOKEN not in names
