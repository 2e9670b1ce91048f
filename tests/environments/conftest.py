"""Nurseries of the environments in support/environments.py."""

import os

import pytest

from align.environments.contract import Environment, Limits
from align.environments.nursery import Nursery, ask

os.environ["NAP_S"] = f"300.{os.getpid()}"  # of the programs that instances of this session start


@pytest.fixture
def nursery():
    """Makes nurseries, and ends them after the test."""
    made = []

    def make(name, args=None, contract=None, module="support.environments", log=None, **limits):
        environment = Environment("own", f"{module}:{name}", args or {}, contract)
        made.append(Nursery(environment, Limits(**{"seconds": 1.5, "memory_gib": 1.0, **limits}), log))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def talk():
    """Asks one instance one thing after the other."""

    def one_by_one(instance, *requests):
        return [ask([(instance, request)])[0] for request in requests]

    return one_by_one
