"""The interface by which nodes reach each other, where gloo by itself takes another."""

import os
import socket
from types import SimpleNamespace

import pytest

from align.system import network
from align.system.network import address_towards, choose_interface, interface, listening

FOUND = {"lo": ["127.0.0.1"], "eth0": ["10.0.0.1", "fe80::1"], "ib0": ["10.1.0.1"]}


def test_it_is_the_one_that_leads_to_the_first_node_or_the_one_that_is_named():
    assert interface(FOUND, None, "10.1.0.1") == "ib0"
    assert interface(FOUND, "eth0", "10.1.0.1") == "eth0" and interface(FOUND, "eth0,ib0", "") == "eth0,ib0"


@pytest.mark.parametrize(
    "named, own, told",
    [
        ("eth1", "10.0.0.1", r"GLOO_SOCKET_IFNAME: no interface eth1; this machine has eth0 \(10.0.0.1\), ib0"),
        ("lo", "10.0.0.1", "other nodes do not reach lo"),
        (
            None,
            "127.0.0.1",
            "leads this machine to 127.0.0.1, which other nodes do not reach; write its",
        ),
        (None, "192.168.0.1", "to 192.168.0.1"),
    ],
)
def test_one_that_nobody_reaches_is_told(named, own, told):
    with pytest.raises(ValueError, match=told):
        interface(FOUND, named, own)


def test_the_environment_gets_it(monkeypatch):
    monkeypatch.setenv(network.GLOO, "")  # so that it is as before behind the test
    del os.environ[network.GLOO]
    assert "leads this machine to 127.0.0.1" in choose_interface("127.0.0.1")
    assert network.GLOO not in os.environ
    monkeypatch.setattr(network, "_own_address", lambda master: next(iter(FOUND["eth0"])))
    own = {name: [SimpleNamespace(address=one) for one in addresses] for name, addresses in FOUND.items()}
    monkeypatch.setattr(network.psutil, "net_if_addrs", lambda: own)
    assert choose_interface("node-0") is None and os.environ[network.GLOO] == "eth0"


def test_a_name_that_nobody_knows_is_told():
    assert "no.such.host.invalid cannot be reached from here" in choose_interface("no.such.host.invalid")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_one_address_alone_is_listened_at(address):
    if address == "::1" and not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("no IPv6 here")
    assert address_towards(address) == address
    with listening(address) as found:
        host, port, *_ = found.getsockname()
        assert host == address
        with pytest.raises(OSError, match="in use"):
            listening(address, port)
        socket.create_connection((address, port)).close()
        other = "127.0.0.2" if address == "127.0.0.1" else "127.0.0.1"
        with pytest.raises(OSError):
            socket.create_connection((other, port))
