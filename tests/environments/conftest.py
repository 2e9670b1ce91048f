"""Nurseries of the environments in support/environments.py."""

import os
from contextlib import closing

import pytest

from align.environments.contract import Environment, Limits, Start
from align.environments.nursery import Nursery, ask

os.environ["NAP_S"] = f"300.{os.getpid()}"  # of the programs that instances of this session start

HANG_S = 2.0  # where a call is to be too slow; on a busy machine the others need tenths of it


def made(name, args=None, contract=None, module="support.environments", log=None, **limits):
    """A nursery whose limits no healthy call reaches, on no machine."""
    return Nursery(
        Environment("own", f"{module}:{name}", args or {}, contract), Limits(**{"seconds": 60.0, **limits}), log
    )


@pytest.fixture
def nursery():
    """Makes nurseries, and ends them after the test."""
    all_of_them = []

    def make(*args, **kwargs):
        all_of_them.append(made(*args, **kwargs))
        return all_of_them[-1]

    yield make
    for one in all_of_them:
        one.close()


@pytest.fixture(scope="session")
def lasting():
    """Nurseries that live on through all tests and all faults: one for each class."""
    kept = {}

    def one(name):
        if name not in kept:
            kept[name] = made(name)
        return kept[name]

    yield one
    for one in kept.values():
        one.close()


@pytest.fixture(scope="session")
def hasty():
    """A nursery of `Guess` in which a call may take `HANG_S` seconds."""
    with closing(made("Guess", seconds=HANG_S)) as one:
        yield one


@pytest.fixture(scope="session")
def talk():
    """Asks one instance one thing after the other."""

    def one_by_one(instance, *requests):
        return [ask([(instance, request)])[0] for request in requests]

    return one_by_one


@pytest.fixture(scope="session")
def starts():
    """Starts an episode in as many instances as there are rows."""

    def start(nursery, *rows):
        return ask([(nursery.instance(i), Start(row, i)) for i, row in enumerate(rows)])

    return start
