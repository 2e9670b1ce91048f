"""Instances in processes of their own, asked side by side; what cannot be used is told before a run begins."""

import os
import subprocess
import sys
import time

import pytest

from align.environments.contract import Finish, Observation, Opening, Outcome, Reply, Start
from align.environments.nursery import EnvironmentFailed, ask

NAP = Reply("(__import__('time').sleep(1), ('', 0, False, False, {}))[1]")  # 1 s


# ---- healthy instances


def test_instances_are_made_once_reset_often_and_live_in_processes_of_their_own(nursery, starts, talk):
    one = nursery("Guess")
    first, again = [starts(one, {}, {}, {}) for _ in range(2)]
    processes = [found.info["process"] for found in first]
    assert len({*processes, os.getpid()}) == 4 and [found.info["process"] for found in again] == processes
    (outcome,) = talk(one.instance(1), Finish())
    assert outcome.attributes["episodes"] == 2


def test_an_episode_follows_from_its_seed_whichever_instance_plays_it(nursery):
    one = nursery("Guess", {"high": 10**6})

    def numbers(order):
        found = ask([(one.instance(i), Start({}, seed)) for i, seed in enumerate(order)])
        return {seed: opening.info["number"] for seed, opening in zip(order, found, strict=True)}

    first, again = numbers([1, 2, 3]), numbers([3, 1, 2])
    assert first == again and len(set(first.values())) == 3


def test_all_instances_are_made_alike_and_sets_of_texts_have_one_order(nursery, lasting, starts, talk):
    one, other = nursery("Guess"), nursery("Guess")
    starts(one, {}, {})
    starts(other, {})
    built = [talk(i, Finish())[0].attributes["built"] for i in (one.instance(0), one.instance(1), other.instance(0))]
    assert len(set(built)) == 1
    text = starts(lasting("Returns"), {"what": "(str({'a', 'b', 'c', 'd', 'e'}), {})"})[0].text
    code = "print({'a', 'b', 'c', 'd', 'e'}, end='')"
    same = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True)
    assert text == same.stdout


def test_instances_work_side_by_side(lasting, starts):
    one = lasting("Returns")
    starts(one, *[{}] * 6)
    start = time.monotonic()
    found = ask([(one.instance(i), NAP) for i in range(6)])
    assert all(isinstance(each, Observation) for each in found)
    assert time.monotonic() - start < 6  # what they take one after the other


def test_at_once_keeps_waiting_out_of_the_seconds_of_a_call(nursery, starts):
    one = nursery("Returns", at_once=2, seconds=2.5)
    starts(one, *[{}] * 6)
    start = time.monotonic()
    assert all(isinstance(each, Observation) for each in ask([(one.instance(i), NAP) for i in range(6)]))
    assert time.monotonic() - start >= 3  # three times two, longer than a call may take


def test_instances_of_two_environments_are_asked_together_and_answer_in_order(lasting):
    guess, counter = lasting("Guess"), lasting("Counter")
    seats = [guess.instance(0), counter.instance(0), guess.instance(1)]
    found = ask([(seat, Start({"start": i}, i)) for i, seat in enumerate(seats)])
    assert [each.text for each in found] == ["Guess 1..8.", " It stands at 1.", "Guess 1..8."]


def test_turns_cost_less_than_a_process(nursery, starts):
    """80 turns, beside one start of an interpreter: no turn makes a process, or waits between two looks."""
    start = time.monotonic()
    one = nursery("Guess")
    starts(one, {})
    first = time.monotonic() - start
    starts(one, *[{}] * 8)
    start = time.monotonic()
    for _ in range(10):
        ask([(one.instance(i), Reply("0")) for i in range(8)])
    assert time.monotonic() - start < first


# ---- what cannot be used stops the run before it begins


@pytest.mark.parametrize(
    "name, args, reason",
    [
        ("Nothing", {}, "module 'support.environments' has no attribute 'Nothing'"),
        ("NUMBER", {}, "support.environments:NUMBER is neither a class nor a function that makes an environment"),
        ("NoReset", {}, "NoReset has no method reset, so it is no environment of the contract 'tools'"),
        ("Guess", {"low": 1}, r"in __init__: TypeError: .*unexpected keyword argument 'low'"),
        ("Guess", {"build": "os._exit"}, "its process left with exit code 0"),
        ("Guess", {"build": "raise"}, r"ValueError: xxx.*\(environments\.py:\d+\)"),
    ],
)
def test_an_environment_that_cannot_be_used(nursery, name, args, reason):
    with pytest.raises(EnvironmentFailed, match=f"environment 'own' cannot be used: .*{reason}"):
        nursery(name, args).wait()


def test_a_constructor_that_hangs(nursery, monkeypatch):
    one = nursery("Guess", {"build": "loop"})
    one.build_s = 0.5
    with pytest.raises(EnvironmentFailed, match="in __init__: it took longer than 0.5 s"):
        one.wait()


def test_a_module_that_starts_threads_is_refused(nursery, tmp_path, monkeypatch):
    lines = (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), name='watch', daemon=True).start()\n"
    )
    (tmp_path / "threaded.py").write_text(lines + "class Own: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvironmentFailed, match=r"importing threaded left threads running \(watch\)"):
        nursery("Own", module="threaded").wait()


def test_a_system_that_starts_no_process_fails_the_episode(nursery, starts, monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    one = nursery("Guess")
    with monkeypatch.context() as patch:
        patch.setattr("align.environments.nursery.socket.socketpair", refuse)
        (found,) = starts(one, {})
        assert found.why == "its process cannot be started: [Errno 11] Resource temporarily unavailable"
    assert isinstance(starts(one, {})[0], Opening) and isinstance(ask([(one.instance(0), Finish())])[0], Outcome)
