"""Whatever one instance does, the trainer and the other instances go on; only its episode fails."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import closing

import psutil
import pytest
from support.hostile_rewards import ATTACKS
from support.paths import PYTHONPATH

from align.environments.contract import Environment, Finish, Limits, Observation, Opening, Outcome, Reply, Start
from align.environments.nursery import EnvironmentFailed, Nursery, ask
from align.system import pipe
from align.system.failure import Failure

LATE = "took longer than 1.5 s; raise environment.seconds if it needs more"

FAULTS = {
    "loop": LATE,
    "sleep": LATE,
    "stopped": LATE,
    "forks and leaves": "its process left with exit code 7",
    "raise": "ValueError: " + "x" * 588 + " (LINE)",
    "rude": "Rude, which cannot be shown (LINE)",
    "exit": "SystemExit: 3 (LINE)",
    "os._exit": "its process left with exit code 0",
    "killed": "its process died of SIGKILL; was the machine out of memory?",
    "segfault": "its process died of SIGSEGV",
    "memory": "MemoryError (LINE); raise environment.memory_gib if it needs more",
    "closes": "its process closed the pipe to the trainer",
}

HARMLESS = ["flood", "forks", "program"]


@pytest.fixture(scope="module")
def one():
    """A nursery that lives on through all faults."""
    with closing(Nursery(Environment("own", "support.environments:Guess"), Limits(seconds=1.5))) as one:
        yield one


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for(true):
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def why(found):
    return re.sub(r"environments\.py:\d+", "LINE", found.why) if isinstance(found, Failure) else found


def starts(nursery, *rows):
    """Start an episode in as many instances."""
    return ask([(nursery.instance(i), Start(row, i)) for i, row in enumerate(rows)])


# ---- healthy instances


def test_instances_are_made_once_reset_often_and_live_in_processes_of_their_own(nursery, talk):
    one = nursery("Guess")
    first, again = [starts(one, {}, {}, {}) for _ in range(2)]
    processes = [found.info["process"] for found in first]
    assert len({*processes, os.getpid()}) == 4 and [found.info["process"] for found in again] == processes
    (outcome,) = talk(one.instance(1), Finish())
    assert outcome.attributes["episodes"] == 2


def test_an_episode_follows_from_its_seed_whichever_instance_plays_it(nursery):
    def numbers(order):
        one = nursery("Guess", {"high": 10**6})
        found = ask([(one.instance(i), Start({}, seed)) for i, seed in enumerate(order)])
        return {seed: opening.info["number"] for seed, opening in zip(order, found, strict=True)}

    assert numbers([1, 2, 3]) == numbers([3, 1, 2]) and len(set(numbers([1, 2, 3]).values())) == 3


def test_all_instances_are_made_alike_and_sets_of_texts_have_one_order(nursery, talk):
    one, other = nursery("Guess"), nursery("Guess")
    starts(one, {}, {})
    starts(other, {})
    built = [talk(i, Finish())[0].attributes["built"] for i in (one.instance(0), one.instance(1), other.instance(0))]
    assert len(set(built)) == 1
    told = nursery("Returns", module="support.environments")
    text = starts(told, {"what": "(str({'a', 'b', 'c', 'd', 'e'}), {})"})[0].text
    code = "print({'a', 'b', 'c', 'd', 'e'}, end='')"
    same = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True)
    assert text == same.stdout


def test_instances_work_side_by_side(nursery):
    one = nursery("Returns", seconds=10.0)
    starts(one, *[{}] * 4)
    start = time.monotonic()
    asleep = Reply("(__import__('time').sleep(0.5), ('', 0, False, False, {}))[1]")
    found = ask([(one.instance(i), asleep) for i in range(4)])
    assert all(isinstance(each, Observation) for each in found)
    assert time.monotonic() - start < 1.5  # one after the other they take 2 s


def test_at_once_keeps_waiting_out_of_the_seconds_of_a_call(nursery):
    one = nursery("Returns", at_once=2, seconds=0.9)
    starts(one, *[{}] * 6)
    start = time.monotonic()
    asleep = Reply("(__import__('time').sleep(0.4), ('', 0, False, False, {}))[1]")
    assert all(isinstance(each, Observation) for each in ask([(one.instance(i), asleep) for i in range(6)]))
    assert time.monotonic() - start >= 1.2  # three times two, longer than a call may take


def test_instances_of_two_environments_are_asked_together_and_answer_in_order(nursery):
    guess, counter = nursery("Guess"), nursery("Counter")
    seats = [guess.instance(0), counter.instance(0), guess.instance(1)]
    found = ask([(seat, Start({"start": i}, i)) for i, seat in enumerate(seats)])
    assert [each.text for each in found] == ["Guess 1..8.", " It stands at 1.", "Guess 1..8."]


def test_a_turn_costs_little(nursery):
    one = nursery("Guess")
    starts(one, *[{}] * 8)
    start = time.monotonic()
    for _ in range(10):
        ask([(one.instance(i), Reply("0")) for i in range(8)])
    assert (time.monotonic() - start) / 80 < 0.01


# ---- faults


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_in_step_fails_its_episode_alone_and_the_next_works(one, what):
    before = starts(one, {}, {}, {})
    found = ask([(one.instance(i), Reply(text)) for i, text in enumerate(["0", what, "0"])])
    assert why(found[1]) == FAULTS[what]
    assert [found[0].messages[0].content, found[2].messages[0].content] == ["higher", "higher"]
    after = starts(one, {}, {}, {})
    same = [old.info["process"] == new.info["process"] for old, new in zip(before, after, strict=True)]
    assert same == [True, False, True]
    wait_for(lambda: not alive(before[1].info["process"]))


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_in_reset_fails_its_episode_alone(one, what):
    found = starts(one, {}, {"what": what}, {})
    assert why(found[1]) == FAULTS[what] and [type(found[i]) for i in (0, 2)] == [Opening] * 2
    assert all(isinstance(each, Opening) for each in starts(one, {}, {}, {}))


def test_several_faults_at_once_cost_the_time_of_one(nursery):
    one = nursery("Guess")
    starts(one, *[{}] * 6)
    start = time.monotonic()
    found = ask(
        [(one.instance(i), Reply(text)) for i, text in enumerate(["loop", "0", "sleep", "killed", "0", "loop"])]
    )
    assert [isinstance(each, Failure) for each in found] == [True, False, True, True, False, True]
    assert time.monotonic() - start < 4


@pytest.mark.parametrize("what", HARMLESS)
def test_what_is_no_fault(nursery, what):
    one = nursery("Guess", seconds=30.0)
    starts(one, {})
    (found,) = ask([(one.instance(0), Reply(what))])
    assert found.messages[0].content == "Say a number."
    assert ask([(one.instance(0), Reply("0"))])[0].messages[0].content == "higher"


def test_a_flood_of_output_is_kept_up_to_a_size_and_goes_nowhere_else(nursery, tmp_path, capfd):
    one = nursery("Guess", log=tmp_path / "own.log", seconds=30.0)
    starts(one, {})
    assert isinstance(ask([(one.instance(0), Reply("flood"))])[0], Observation)
    one.close()
    wait_for(lambda: (tmp_path / "own.log").stat().st_size > 10 * 2**20)
    assert (tmp_path / "own.log").stat().st_size < 11 * 2**20
    assert capfd.readouterr() == ("", "")


def test_the_end_of_the_process_that_is_copied_fails_the_episodes_and_not_the_run(nursery):
    one = nursery("Guess")
    before = starts(one, {}, {})
    found = ask([(one.instance(0), Reply("kills its parent")), (one.instance(1), Reply("sleep"))])
    assert all(isinstance(each, Failure) for each in found), found
    after = starts(one, {}, {})
    assert all(isinstance(each, Opening) for each in after)
    assert not {each.info["process"] for each in before} & {each.info["process"] for each in after}


def test_an_instance_that_died_between_two_calls_is_a_failure(nursery):
    one = nursery("Guess")
    (found,) = starts(one, {})
    os.kill(found.info["process"], signal.SIGKILL)
    (found,) = ask([(one.instance(0), Reply("0"))])
    assert why(found) == FAULTS["killed"]
    assert isinstance(starts(one, {})[0], Opening)


def sleeping():
    """The programs that instances have started."""
    return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", os.environ["NAP_S"]]]


def test_what_an_instance_started_ends_with_it_alone(nursery):
    one = nursery("Guess")
    starts(one, {}, {})
    ask([(one.instance(i), Reply("program")) for i in (0, 1)])
    wait_for(lambda: len(sleeping()) == 2)
    ask([(one.instance(0), Reply("raise"))])
    wait_for(lambda: len(sleeping()) == 1)
    assert isinstance(ask([(one.instance(1), Reply("0"))])[0], Observation)


def test_nothing_outlives_the_run(nursery):
    one = nursery("Guess")
    found = starts(one, {}, {"what": "loop"}, {"what": "program"})
    wait_for(sleeping)
    one.close()
    wait_for(lambda: not sleeping())
    assert not any(alive(each.info["process"]) for each in found if isinstance(each, Opening))


def test_they_end_with_a_trainer_that_is_killed(tmp_path):
    code = """
        import time
        from align.environments.contract import Environment, Limits, Start
        from align.environments.nursery import Nursery, ask
        one = Nursery(Environment("own", "support.environments:Guess"), Limits())
        print([f.info["process"] for f in ask([(one.instance(i), Start({}, i)) for i in range(2)])], flush=True)
        time.sleep(1000)
    """
    trainer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        stdout=subprocess.PIPE,
        text=True,
    )
    with trainer:
        processes = [int(text) for text in re.findall(r"\d+", trainer.stdout.readline())]
        assert len(processes) == 2 and all(map(alive, processes))
        trainer.kill()
    wait_for(lambda: not any(map(alive, processes)))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_the_trainer_fails_its_episode_at_most(one, monkeypatch, tmp_path, name):
    """The attacks of rewards, on the pipe of an instance."""
    monkeypatch.setattr(pipe, "TRANSFER_S", 1.0)
    starts(one, {}, {})
    start = time.monotonic()
    attack = f"attack {name} {tmp_path / 'ran'}"
    found = ask([(one.instance(0), Reply(attack)), (one.instance(1), Reply("0"))])
    assert isinstance(found[0], Failure) or found[0].messages[0].content == "Say a number."
    assert found[1].messages[0].content == "higher" and time.monotonic() - start < 8
    assert not (tmp_path / "ran").exists()
    assert all(isinstance(each, Opening) for each in starts(one, {}, {}))


# ---- what cannot be used stops the run before it begins


@pytest.mark.parametrize(
    "name, args, reason",
    [
        ("Nothing", {}, "module 'support.environments' has no attribute 'Nothing'"),
        ("NUMBER", {}, "support.environments:NUMBER is neither a class nor a function that makes an environment"),
        ("NoReset", {}, "NoReset has no method reset, so it is no environment of the contract 'tools'"),
        ("Undocumented", {}, "the tool add cannot be shown to a model: .*; write Google's docstring"),
        ("Guess", {"low": 1}, r"TypeError: .*unexpected keyword argument 'low'"),
        ("Guess", {"build": "os._exit"}, "its process left with exit code 0"),
        ("Guess", {"build": "raise"}, r"ValueError: xxx.*\(environments\.py:\d+\)"),
    ],
)
def test_an_environment_that_cannot_be_used(nursery, name, args, reason):
    with pytest.raises(EnvironmentFailed, match=f"environment 'own' cannot be used: .*{reason}"):
        nursery(name, args, seconds=20.0).wait()


def test_a_constructor_that_hangs(nursery, monkeypatch):
    one = nursery("Guess", {"build": "loop"})
    one.build_s = 0.5
    with pytest.raises(EnvironmentFailed, match="making it took longer than 0.5 s"):
        one.wait()


def test_a_module_that_starts_threads_is_refused(nursery, tmp_path, monkeypatch):
    lines = (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), name='watch', daemon=True).start()\n"
    )
    (tmp_path / "threaded.py").write_text(lines + "class Own: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvironmentFailed, match=r"importing threaded left threads running \(watch\)"):
        nursery("Own", module="threaded").wait()


def test_a_system_that_starts_no_process_fails_the_episode(nursery, monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    one = nursery("Guess")
    with monkeypatch.context() as patch:
        patch.setattr("align.environments.nursery.socket.socketpair", refuse)
        (found,) = starts(one, {})
        assert found.why == "its process cannot be started: [Errno 11] Resource temporarily unavailable"
    assert isinstance(starts(one, {})[0], Opening) and isinstance(ask([(one.instance(0), Finish())])[0], Outcome)
