"""Whatever one instance does, the trainer and the other instances go on; only its episode fails, and says why."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
from pydantic import TypeAdapter
from support.environments import Counter, Guess, NoReset, Silent
from support.hostile_rewards import ATTACKS
from support.paths import PYTHONPATH

from align.environments.contract import Call, Description, Finish, Observation, Opening, Reply, Start
from align.environments.nursery import ask
from align.environments.process import describe, kind_of, written
from align.system import pipe
from align.system.failure import Failure

HANG_S = 2.0  # as in conftest.py

LATE = "took longer than 2 s; raise environment.seconds if it needs more"

MEMORY = "MemoryError (LINE); raise environment.memory_gib if it needs more"

HANGS = ["loop", "sleep", "stopped", "prints on"]

FAULTS = {
    "forks and leaves": "its process left with exit code 7",
    "raise": "ValueError: " + "x" * 588 + " (LINE)",
    "rude": "Rude, which cannot be shown (LINE)",
    "exit": "SystemExit: 3 (LINE)",
    "os._exit": "its process left with exit code 0",
    "killed": "its process died of SIGKILL; was the machine out of memory?",
    "segfault": "its process died of SIGSEGV",
    "memory": MEMORY,
    "gigabyte": MEMORY,
    "closes": "its process closed the pipe to the trainer",
}

HARMLESS = ["flood", "forks", "program"]

FRESH = [Opening] * 3


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def why(found):
    return re.sub(r"environments\.py:\d+", "LINE", found.why) if isinstance(found, Failure) else found


def kinds(found):
    return [type(each) for each in found]


def sleeping():
    """The programs that instances have started."""
    return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", os.environ["NAP_S"]]]


# ---- faults


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_in_step_fails_its_episode_alone_and_the_next_works(lasting, starts, what):
    one = lasting("Guess")
    before = starts(one, {}, {}, {})
    found = ask([(one.instance(i), Reply(text)) for i, text in enumerate(["0", what, "0"])])
    assert why(found[1]) == FAULTS[what]
    assert [found[0].messages[0].content, found[2].messages[0].content] == ["higher", "higher"]
    after = starts(one, {}, {}, {})
    same = [old.info["process"] == new.info["process"] for old, new in zip(before, after, strict=True)]
    assert same == [True, False, True]
    wait_for(lambda: not alive(before[1].info["process"]))


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_in_reset_fails_its_episode_alone(lasting, starts, what):
    found = starts(lasting("Guess"), {}, {"what": what}, {})
    assert why(found[1]) == FAULTS[what] and kinds(found) == [Opening, Failure, Opening]
    assert kinds(starts(lasting("Guess"), {}, {}, {})) == FRESH


def test_hangs_side_by_side_cost_the_time_of_one(hasty, starts):
    said = ["0", *HANGS, *["sleep"] * 8, "0"]
    processes = [found.info["process"] for found in starts(hasty, *[{}] * len(said))]
    start = time.monotonic()
    found = ask([(hasty.instance(i), Reply(text)) for i, text in enumerate(said)])
    assert time.monotonic() - start < 12 * HANG_S  # what they take one after the other
    assert [why(each) for each in found[1:-1]] == [LATE] * 12
    assert [found[0].messages[0].content, found[-1].messages[0].content] == ["higher", "higher"]
    wait_for(lambda: not any(map(alive, processes[1:-1])))
    assert kinds(starts(hasty, *[{}] * len(said))) == [Opening] * len(said)


def test_hangs_in_reset_fail_their_episodes(hasty, starts):
    found = starts(hasty, {}, *[{"what": what} for what in HANGS])
    assert [why(each) for each in found[1:]] == [LATE] * len(HANGS) and kinds(found)[0] is Opening
    assert kinds(starts(hasty, {}, {}, {})) == FRESH


FAULTS_OF_A_TOOL = {**FAULTS, "raise": None, "rude": None}  # those are told to the model


@pytest.mark.parametrize("what", FAULTS_OF_A_TOOL)
def test_a_fault_in_a_tool_fails_its_episode_but_an_error_is_told(lasting, talk, what):
    one = lasting("Counter").instance(0)
    _, found, again = talk(one, Start({}, 0), Reply("", (Call("terrible", {"what": what}),)), Start({"start": 2}, 0))
    reason = FAULTS_OF_A_TOOL[what]
    assert why(found) == reason if reason else found.failed_calls == 1
    assert again.text == " It stands at 2."


@pytest.mark.parametrize(
    "total, reason",
    [
        (13, "ValueError: xxx"),
        (15, "returned 'much'; return a finite number or None"),
        (99, "its process left with exit code 0"),
    ],
)
def test_a_fault_in_get_reward(lasting, talk, total, reason):
    one = lasting("Counter").instance(0)
    _, found, again = talk(one, Start({"start": total}, 0), Finish(), Start({}, 0))
    assert isinstance(found, Failure) and found.why.startswith(reason) and again == Opening("")


def test_a_tool_and_a_get_reward_that_hang(nursery, starts):
    one = nursery("Counter", seconds=HANG_S)
    starts(one, {}, {"start": 14})
    found = ask([(one.instance(0), Reply("", (Call("terrible", {"what": "loop"}),))), (one.instance(1), Finish())])
    assert [why(each) for each in found] == [LATE, LATE]


@pytest.mark.parametrize("what, reason", [("raise", "ValueError: xxx"), ("os._exit", "its process left with")])
def test_a_fault_in_the_constructor_fails_the_episode(nursery, starts, what, reason):
    one = nursery("Guess", {"build": what})
    for found in starts(one, {}, {}):
        assert isinstance(found, Failure) and found.why.startswith(f"in __init__: {reason}")


@pytest.mark.parametrize("what", HARMLESS)
def test_what_is_no_fault(lasting, starts, what):
    one = lasting("Guess")
    starts(one, {})
    (found,) = ask([(one.instance(0), Reply(what))])
    assert found.messages[0].content == "Say a number."
    assert ask([(one.instance(0), Reply("0"))])[0].messages[0].content == "higher"


def test_a_flood_of_output_is_kept_up_to_a_size_and_goes_nowhere_else(nursery, starts, tmp_path, capfd):
    one = nursery("Guess", log=tmp_path / "own.log", seconds=HANG_S)
    starts(one, {})
    (found,) = ask([(one.instance(0), Reply("prints on"))])
    assert why(found) == LATE
    one.close()
    wait_for(lambda: (tmp_path / "own.log").stat().st_size > 10 * 2**20)
    assert (tmp_path / "own.log").stat().st_size < 11 * 2**20
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_the_trainer_fails_its_episode_at_most(hasty, starts, monkeypatch, tmp_path, name):
    """The attacks of rewards, on the pipe of an instance."""
    monkeypatch.setattr(pipe, "TRANSFER_S", 1.0)
    starts(hasty, {}, {})
    start = time.monotonic()
    attack = f"attack {name} {tmp_path / 'ran'}"
    found = ask([(hasty.instance(0), Reply(attack)), (hasty.instance(1), Reply("0"))])
    assert isinstance(found[0], Failure) or found[0].messages[0].content == "Say a number."
    assert found[1].messages[0].content == "higher" and time.monotonic() - start < 25  # else it takes for ever, or 30 s
    assert not (tmp_path / "ran").exists()
    assert kinds(starts(hasty, {}, {})) == FRESH[:2]


def test_an_answer_that_json_cannot_hold_is_a_failure():
    kind = TypeAdapter(Opening | Failure)
    assert written(kind, Opening("x")) == b'{"text":"x","info":{},"anchor":null}'
    told = kind.validate_json(written(kind, Opening("\ud800")))
    assert isinstance(told, Failure) and "surrogates not allowed" in told.why


def test_what_json_cannot_hold_does_not_end_its_process(nursery, starts):
    one = nursery("Returns")
    starts(one, {})
    patch = "setattr(__import__('align.environments.text').environments.text, 'said', str)"
    (found,) = ask([(one.instance(0), Reply(f"({patch}, ('\\ud800', 0, False, False, {{}}))[1]"))])
    assert isinstance(found, Failure) and "surrogates not allowed" in found.why


# ---- what ends, and with whom


def test_the_end_of_the_process_that_is_copied_fails_the_episodes_and_not_the_run(nursery, starts):
    one = nursery("Guess")
    before = starts(one, {}, {})
    found = ask([(one.instance(0), Reply("kills its parent")), (one.instance(1), Reply("sleep"))])
    assert kinds(found) == [Failure, Failure], found
    after = starts(one, {}, {})
    assert kinds(after) == FRESH[:2]
    assert not {each.info["process"] for each in before} & {each.info["process"] for each in after}


def test_an_instance_that_died_between_two_calls_is_a_failure(lasting, starts):
    one = lasting("Guess")
    (found,) = starts(one, {})
    os.kill(found.info["process"], signal.SIGKILL)
    (found,) = ask([(one.instance(0), Reply("0"))])
    assert why(found) == FAULTS["killed"]
    assert kinds(starts(one, {})) == [Opening]


def test_what_an_instance_started_ends_with_it_alone(nursery, starts):
    one, before = nursery("Guess"), len(sleeping())
    starts(one, {}, {})
    ask([(one.instance(i), Reply("program")) for i in (0, 1)])
    wait_for(lambda: len(sleeping()) == before + 2)
    ask([(one.instance(0), Reply("raise"))])
    wait_for(lambda: len(sleeping()) == before + 1)
    assert isinstance(ask([(one.instance(1), Reply("0"))])[0], Observation)


def test_what_was_killed_leaves_the_table_of_processes(lasting, starts):
    one = lasting("Guess")

    def ended():
        starts(one, {})
        ask([(one.instance(0), Reply("raise"))])
        (found,) = starts(one, {})
        there = psutil.Process(found.info["process"]).parent().children()
        return [child for child in there if child.status() == psutil.STATUS_ZOMBIE]

    first = ended()
    wait_for(lambda: not set(first) & set(ended()))


def test_nothing_outlives_the_run(nursery, starts):
    one, before = nursery("Guess", seconds=HANG_S), len(sleeping())
    found = starts(one, {}, {"what": "loop"}, {"what": "program"})
    wait_for(lambda: len(sleeping()) > before)
    one.close()
    wait_for(lambda: len(sleeping()) == before)
    wait_for(lambda: not any(alive(each.info["process"]) for each in found if isinstance(each, Opening)))


def test_they_end_with_a_trainer_that_is_killed(tmp_path):
    code = """
        import time
        from align.environments.contract import Environment, Limits, Start
        from align.environments.nursery import Nursery, ask
        one = Nursery(Environment("own", "support.environments:Guess"), Limits(seconds=60.0))
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


# ---- what an environment offers


def test_the_contract_is_that_of_step_where_nothing_else_is_said():
    assert [kind_of(one) for one in (Guess(), Counter(), Silent())] == ["text", "tools", "text"]
    found = describe(Silent(), "tools")
    assert (found.contract, found.scores) == ("tools", False)
    assert [tool["function"]["name"] for tool in found.tools] == ["step"]
    assert describe(Guess(), "text") == Description("Guess", "text", [], False)


@pytest.mark.parametrize("one, kind, missing", [(NoReset(), "tools", "reset"), (Counter(), "text", "step")])
def test_a_contract_that_is_not_kept(one, kind, missing):
    reason = f"{type(one).__name__} has no method {missing}, so it is no environment of the contract {kind!r}"
    assert describe(one, kind) == Failure(reason)
