"""Find the network interface by which the machines of a run reach each other."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence

import psutil

GLOO = "GLOO_SOCKET_IFNAME"


def choose_interface(master: str) -> str | None:
    """Set gloo's interface to the one by which this machine reaches the first node, where the environment names none;
    why there is none that could be taken.

    Gloo by itself takes the address that this machine's own name has, on many machines the loopback one.
    """
    found = {name: [one.address for one in addresses] for name, addresses in psutil.net_if_addrs().items()}
    try:
        name = interface(found, os.environ.get(GLOO), _own_address(master))
    except ValueError as error:
        return str(error)
    os.environ[GLOO] = name
    return None


def interface(found: Mapping[str, Sequence[str]], named: str | None, own: str) -> str:
    """The interface among those found that gloo is to take: the one that is named, or that with the address `own`.

    Raises `ValueError` with those that there are.
    """
    others = [f"{name} ({addresses[0]})" for name, addresses in found.items() if name != "lo" and addresses]
    there = f"this machine has {', '.join(others) or 'only lo'}"
    if named:
        if missing := [name for name in named.split(",") if name not in found]:
            raise ValueError(f"{GLOO}: no interface {missing[0]}; {there}")
        if named == "lo":
            raise ValueError(f"{GLOO}: other nodes do not reach lo; {there}")
        return named
    name = next((name for name, addresses in found.items() if own in addresses), None)
    if name is None or name == "lo":
        what = f"the first node's name leads this machine to {own}, which other nodes do not reach"
        raise ValueError(f"--main_process_ip: {what}; write its address, or set {GLOO}: {there}")
    return name


def _own_address(master: str) -> str:
    """This machine's address on the way to the first node. Raises `ValueError` for a name that is not known."""
    try:
        return address_towards(master)
    except OSError as error:
        raise ValueError(f"--main_process_ip: {master} cannot be reached from here: {error}") from error


def address_towards(host: str) -> str:
    """This machine's address, of IPv4 or IPv6, as another one sees it. Raises `OSError` for a name nobody knows."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as way:
        way.connect(address)  # sends nothing
        return way.getsockname()[0]


def listening(address: str, port: int = 0) -> socket.socket:
    """A socket that listens at one address of this machine alone; port 0: at any that is free."""
    family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((address, port), family=family)
