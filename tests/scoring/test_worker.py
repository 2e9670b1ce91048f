"""Whatever a reward function does, the trainer goes on; only the rows that are to blame are masked."""

import os
import pickle
import re
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import closing

import psutil
import pytest
from support.hostile_rewards import ATTACKS
from support.paths import TESTS

from align.config.recipe import RewardFunction, RewardLimits
from align.data.prompts import Prompt, Response
from align.scoring.process import Failure
from align.scoring.score import score_rows
from align.scoring.worker import RewardError, Worker
from align.system import output, pipe

HOSTILE = "support.hostile_rewards"

LIMITS = {"seconds": 1.0, "memory_gib": 0.5, "max_failed": 0.5}


@pytest.fixture
def worker():
    """Makes workers of functions in support/reward_functions.py, and ends them after the test."""
    made = []

    def make(name, args=None, module="support.reward_functions", log=None, **limits):
        reward = RewardFunction(name, f"{module}:{name}", 1.0, args or {})
        made.append(Worker(reward, RewardLimits(**{**LIMITS, **limits}), log))
        return made[-1]

    yield make
    for one in made:
        one.close()


def scored(workers, texts):
    prompts = [Prompt([1], f"q{i}", f"q{i}", {"level": i}) for i in range(len(texts))]
    return score_rows(workers, prompts, [Response([1], [-1.0], False)] * len(texts), texts, len(texts))


def values(worker, *texts):
    return shared([worker], *texts)


def shared(workers, *texts):
    """What several processes of one reward give for these rows, in their order."""
    (column,) = scored(workers, texts).values()
    whys = [value.why if isinstance(value, Failure) else value for value in column]
    return [re.sub(r"reward_functions\.py:\d+", "LINE", why) if isinstance(why, str) else why for why in whys]


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


# ---- a healthy reward


def test_values_come_from_one_process_that_lives_on(worker):
    one = worker("process")
    first = values(one, "a", "b")
    assert first == values(one, "c") * 2 and first[0] not in (None, float(os.getpid()))
    assert values(worker("lengths"), "a", "bb", "") == [1.0, 2.0, 0.0]


def test_arguments_of_the_recipe_win_over_columns_of_the_same_name(worker):
    assert values(worker("argument"), "a", "b", "c") == [0.0, 1.0, 2.0]
    assert values(worker("argument", {"level": 9}), "a", "b", "c") == [9.0] * 3


def test_rewards_run_side_by_side(worker):
    several = [worker("judged", seconds=60) for _ in range(4)]
    for one in several:
        one.wait()
    start = time.monotonic()
    for n, one in enumerate(several):
        one.reward = RewardFunction(f"judged_{n}", "support.reward_functions:judged", 1.0)
    assert scored(several, ["a"] * 30) == {f"judged_{n}": [1.0] * 30 for n in range(4)}
    assert time.monotonic() - start < 6  # what they take one after the other


def test_none_is_no_failure(worker):
    one = worker("unless_two", max_failed=0.0)
    assert values(one, "one", "two") == [1.0, None]


def test_ten_healthy_calls_cost_less_than_a_process(worker):
    texts, start = ["word " * 200] * 64, time.monotonic()
    one = worker("lengths", seconds=60)
    values(one, *texts)
    first, start = time.monotonic() - start, time.monotonic()
    for _ in range(10):
        values(one, *texts)
    assert time.monotonic() - start < first


# ---- failures of rows


@pytest.mark.parametrize(
    "what, why",
    [
        ("loop", "took longer than 1 s; raise reward_limits.seconds if it needs more"),
        ("memory", "MemoryError (LINE); raise reward_limits.memory_gib if it needs more"),
        ("gradual memory", "MemoryError (LINE); raise reward_limits.memory_gib if it needs more"),
        ("segfault", "its process died of SIGSEGV"),
        ("raises", "ValueError: " + "x" * 588 + " (LINE)"),
        ("nan", "returned nan; return a finite number or None"),
        ("huge value", "returned 'zzzzzzzzzzzz...zzzzzzzzzzzzz'; return a finite number or None"),
        ("huge number", f"returned 1{'0' * 17}...{'0' * 19}; return a number within float32, up to 3.4e+38 or None"),
        ("sys.exit", "SystemExit: 0 (LINE)"),
        ("os._exit", "its process left with exit code 0"),
        ("killed", "its process died of SIGKILL; was the machine out of memory?"),
    ],
)
def test_only_the_row_to_blame_is_masked_and_the_next_call_works(worker, what, why):
    one = worker("planted", max_failed=0.25, seconds=1.0 if "took longer" in why else 60.0)
    assert values(one, "fine", what, "fine", "fine") == [1.0, why, 1.0, 1.0]
    assert values(one, "fine", "fine") == [1.0, 1.0]


def test_a_flood_of_output_goes_nowhere(worker, capfd):
    assert values(worker("planted", seconds=30), "fine", "prints") == [1.0, 1.0]
    assert capfd.readouterr() == ("", "")


def test_a_wrong_number_of_values_fails_only_the_row_that_alone_has_it_too(worker):
    one = worker("too_many")
    why = "ValueError: returned 1000000 values for 1 rows; return a list with one value a row"
    assert values(one, "fine", "many", "fine") == [1.0, why, 1.0]


def test_a_process_that_died_between_two_calls_is_made_again(worker):
    one = worker("process")
    (pid,) = values(one, "a")
    os.kill(int(pid), signal.SIGKILL)
    (again,) = values(one, "b")
    assert again != pid and alive(int(again))


def test_what_a_reward_started_ends_with_it(worker):
    def sleeping():
        return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "987654"]]

    values(worker("planted"), "fine", "child")
    wait_for(lambda: not sleeping())


# ---- async rewards


def test_async_rewards_get_one_row_at_a_time_and_run_so_many_at_once(worker):
    one = worker("crowd", concurrency=3)
    assert max(values(one, *"abcdefgh")) == 3.0
    assert max(values(worker("crowd", concurrency=1), *"abc")) == 1.0


@pytest.mark.parametrize(
    "what, why",
    [
        ("sleep", "took longer than 1 s; raise reward_limits.seconds if it needs more"),
        ("stubborn", "took longer than 1 s; raise reward_limits.seconds if it needs more"),
        ("block", "took longer than 1 s; raise reward_limits.seconds if it needs more"),
        ("raises", "KeyError: 'raises' (LINE)"),
        ("exit", "SystemExit: 0 (LINE)"),
    ],
)
def test_an_async_failure_masks_its_row(worker, what, why):
    assert values(worker("picky"), "fine", what, "none", "fine") == [1.0, why, None, 1.0]


# ---- several processes of one reward


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["planted", "picky", "unless_two", "lengths", "argument"])
def test_several_processes_give_what_one_gives(worker, name, count):
    """Whatever each row does to its process: raise, end it, return nonsense; with more processes than rows, too."""
    texts = ["fine", "raises", "nan", "two", "os._exit", "none", "killed"]
    expected = shared([worker(name, max_failed=1.0)], *texts)
    team = [worker(name, max_failed=1.0) for _ in range(count)]
    assert shared(team, *texts) == expected and shared(team, "fine") == expected[:1]


def test_rows_are_spread_over_all_processes(worker):
    team = [worker("process") for _ in range(3)]
    found = shared(team, *"abcdefgh")
    assert len(set(found)) == 3 and found == sorted(found, key=found.index)  # a run of rows each
    assert [found.count(pid) for pid in dict.fromkeys(found)] == [2, 3, 3]


def test_processes_of_a_slow_reward_work_at_once(worker):
    """Calls and, after a failed one, the calls on single rows: 0.5 s each, one after the other 3 s."""
    team = [worker("takes_its_time", module=HOSTILE, seconds=60, max_failed=0.5) for _ in range(4)]
    for one in team:
        one.wait()
    start = time.monotonic()
    found = shared(team, *["raises"] * 2, "fine", "fine")
    assert [isinstance(value, str) for value in found] == [True, True, False, False]
    assert time.monotonic() - start < 3


def test_a_process_that_hangs_costs_only_its_own_rows(worker):
    team = [worker("planted", max_failed=0.5) for _ in range(2)]
    late = "took longer than 1 s; raise reward_limits.seconds if it needs more"
    assert shared(team, "loop", "fine", "fine", "fine") == [late, 1.0, 1.0, 1.0]
    assert shared(team, "fine", "fine") == [1.0, 1.0]


@pytest.mark.parametrize("name", ATTACKS)
def test_one_process_under_attack_leaves_the_other_alone(worker, monkeypatch, tmp_path, name):
    monkeypatch.setattr(pipe, "TRANSFER_S", 1.0)
    monkeypatch.setenv("EVIL", str(tmp_path / "ran"))
    bad, good = worker(name, module=HOSTILE, max_failed=1.0), worker("lengths", max_failed=1.0)
    good.reward = bad.reward  # of one reward, so far as the trainer knows
    found = shared([bad, good], "a", "seven!!")
    assert found[1] == 7.0 and (found[0] == 1.0 or isinstance(found[0], str)) and not (tmp_path / "ran").exists()


# ---- what is no row's fault stops the run


def test_a_reward_that_fails_too_often_stops_the_run(worker):
    with pytest.raises(RewardError) as caught:
        values(worker("planted"), "fine", "raises", "nan", "sys.exit")
    message = str(caught.value)
    assert message.startswith(
        "reward 'planted' failed on 3 of 4 rows, and reward_limits.max_failed is 0.5; on row 1: ValueError: xxx"
    )
    assert message.endswith("('raises')") and len(message) < 1000


def test_it_stops_as_soon_as_too_many_failed(worker):
    with pytest.raises(RewardError, match="failed on 3 of 5 rows"):
        values(worker("planted"), *["loop"] * 5)


def test_max_failed_0_allows_none_and_1_allows_all(worker):
    with pytest.raises(RewardError, match="failed on 1 of 3 rows, and reward_limits.max_failed is 0;"):
        values(worker("planted", max_failed=0.0), "fine", "fine", "nan")
    assert (
        values(worker("planted", max_failed=1.0), "nan", "nan") == ["returned nan; return a finite number or None"] * 2
    )


def test_one_rank_stops_only_where_its_own_failures_are_too_many_for_all(worker):
    one = worker("planted", max_failed=0.4)
    prompts = [Prompt([1], "q", "q", {"level": 1})] * 2
    asked = [one], prompts, [Response([1], [-1.0], False)] * 2, ["nan", "nan"]
    assert all(isinstance(value, Failure) for value in score_rows(*asked, 6)["planted"])
    with pytest.raises(RewardError, match="failed on 2 of 4 rows"):
        score_rows(*asked, 4)


def test_a_long_response_is_cut_in_the_message(worker):
    with pytest.raises(RewardError) as caught:
        values(worker("too_many"), "many", "y" * 10**6, "many")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "path, why",
    [
        ("support.reward_functions:nothing", "module 'support.reward_functions' has no attribute 'nothing'"),
        ("support.reward_functions:not_ready", "RuntimeError: no judge here; apt-get install judge"),
        ("subprocess:getoutput", "subprocess:getoutput takes no completions, so it is no reward function"),
        ("subprocess:call", "takes no completions"),  # its **kwargs would take them
        ("os:system", "takes no completions"),
        ("builtins:print", "takes no completions"),
        ("os:environ", "os:environ is not a function"),
    ],
)
def test_a_reward_that_cannot_be_loaded_stops_the_run(path, why):
    one = Worker(RewardFunction("own", path, 1.0), RewardLimits())
    with closing(one), pytest.raises(RewardError, match=f"reward 'own' cannot be loaded: .*{why}"):
        one.wait()


def test_columns_that_are_no_plain_values(worker):
    prompt, response = Prompt([1], "q", "q", {"fn": lambda: 0}), Response([1], [-1.0], False)
    with pytest.raises(RewardError, match="the columns of the prompts must be plain values"):
        score_rows([worker("lengths")], [prompt], [response], ["a"], 1)


# ---- attacks on the trainer


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_fails_its_call_and_the_next_process_answers(worker, monkeypatch, tmp_path, name):
    monkeypatch.setattr(pipe, "TRANSFER_S", 1.0)
    monkeypatch.setenv("EVIL", str(tmp_path / "ran"))
    one = worker(name, module=HOSTILE, max_failed=1.0)
    one.wait()
    start = time.monotonic()
    (found,) = values(one, "a")
    assert time.monotonic() - start < 25  # else it takes for ever, or the pipe's 30 s
    assert found == 1.0 if ATTACKS[name] is None else re.search(ATTACKS[name], found), found
    if ATTACKS[name] is None:
        assert values(one, "four", "seven!!") == [4.0, 7.0]  # and not what a copy of it answered
    assert not (tmp_path / "ran").exists()
    one.reward = RewardFunction("lengths", "support.reward_functions:lengths", 1.0)
    one.close()
    assert values(one, "four") == [4.0]


def test_an_answer_to_another_call_is_a_failure(worker):
    one = worker("threads", module=HOSTILE, max_failed=1.0)
    (found,) = values(one, "a")
    assert re.fullmatch(r"its process answered call \d+, and call \d+ was asked", found)


def test_what_was_not_read_is_no_answer_to_the_next_call(worker):
    """A run that goes on after another reward has failed too often."""
    one = worker("lengths")
    one.wait()
    one.ask(pickle.dumps(({"completions": ["seven!!"]}, 1)), 1)
    assert values(one, "four") == [4.0]


def test_a_process_that_does_not_read_fails_the_call(worker, monkeypatch):
    monkeypatch.setattr("align.scoring.worker.TRANSFER_S", 1.0)
    one = worker("lengths", max_failed=1.0)
    one.wait()
    os.kill(one._server.process.pid, signal.SIGSTOP)
    start = time.monotonic()
    assert values(one, "a" * 10**7) == [1e7]  # the call on all rows fails, that on the row has another process
    assert 1 < time.monotonic() - start < 25


@pytest.fixture
def few_files():
    """At most 512 open files, for the processes that are started too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("name", ["leaks_memory", "leaks_files"])
def test_a_process_that_leaks_is_made_again(worker, few_files, name):
    one = worker(name, module=HOSTILE, max_failed=1.0)
    found = [value for _ in range(15) for value in values(one, "a", "b")]
    assert found.count(1.0) >= len(found) - 2 * 3  # those after which it counts as broken


def test_a_process_that_has_never_worked_is_not_made_again_for_its_failures(worker):
    one = worker("planted", max_failed=1.0, seconds=60.0)
    values(one, "fine")
    pids = [one._server.process.pid]
    for _ in range(6):
        values(one, "raises")
        pids.append(one._server.process.pid)
    assert pids[0] != pids[-1] and len(set(pids)) == 2  # made again once, since when none has worked


# ---- a process that cannot be started again

FLAKY = """
from pathlib import Path
count = Path(__file__).with_suffix(".count")
n = int(count.read_text()) if count.exists() else 0
count.write_text(str(n + 1))
if n in {bad}:
    {what}
from support.hostile_rewards import ends
"""


@pytest.mark.parametrize(
    "what, why",
    [
        ("raise RuntimeError('no judge')", "importing it raised RuntimeError: no judge (flaky.py:7)"),
        ("__import__('os')._exit(5)", "exit code 5"),
    ],
)
def test_a_failed_restart_fails_rows_and_not_the_run(worker, tmp_path, monkeypatch, what, why):
    (tmp_path / "flaky.py").write_text(FLAKY.format(bad="(1, 2)", what=what))
    monkeypatch.syspath_prepend(tmp_path)
    one = worker("ends", module="flaky", max_failed=0.9)
    found = values(one, "fine", "end", "fine", "fine")
    assert why in found[0] and why in found[1] and all(isinstance(value, float) for value in found[2:]), found
    assert all(isinstance(value, float) for value in values(one, "fine", "fine"))


@pytest.mark.parametrize("where", [(subprocess, "Popen"), (socket, "socketpair"), (output.Thread, "start")])
def test_a_system_that_starts_no_process_fails_the_call(worker, monkeypatch, tmp_path, where):
    one = worker("ends", module=HOSTILE, max_failed=1.0, log=tmp_path / "ends.log")
    one.wait()

    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(*where, refuse)
        assert (
            values(one, "end", "fine")
            == ["its process cannot be started: [Errno 11] Resource temporarily unavailable"] * 2
        )
    assert all(isinstance(value, float) for value in values(one, "fine"))


# ---- what it prints


def test_what_a_reward_prints_is_in_a_file_of_its_own(worker, tmp_path, capfd):
    log = tmp_path / "run/rewards/prints.log"
    one = worker("prints", module=HOSTILE, log=log)
    values(one, "first")
    wait_for(lambda: log.exists() and "from a program" in log.read_text())
    assert log.read_text().splitlines() == ["printed: first", "to stderr", "from a program"]
    (tmp_path / "run").rename(tmp_path / "run.1")  # as a later run does with an earlier one
    values(one, "second")
    wait_for(lambda: log.exists() and "from a program" in log.read_text())
    assert log.read_text().startswith("printed: second")
    assert capfd.readouterr() == ("", "")


def test_a_flood_of_output_is_cut(worker, tmp_path):
    log = tmp_path / "planted.log"
    assert values(worker("planted", seconds=60, log=log), "fine", "prints") == [1.0, 1.0]
    wait_for(lambda: log.read_bytes().endswith(output.DROPPED))
    assert log.stat().st_size == output.MOST + len(output.DROPPED)


def test_where_nothing_can_be_written_a_reward_goes_on(worker, tmp_path):
    (tmp_path / "file").write_text("")
    assert values(worker("prints", module=HOSTILE, log=tmp_path / "file/prints.log"), "a") == [1.0]


# ---- the end


def test_no_process_outlives_a_trainer_that_is_killed(tmp_path):
    """A trainer in the middle of a call that never ends, and an idle process beside it."""
    script = f"""
        import pickle
        from align.config.recipe import RewardFunction, RewardLimits
        from align.scoring.worker import Worker

        def call(name, text):
            worker = Worker(RewardFunction(name, f"support.reward_functions:{{name}}", 1.0), RewardLimits(seconds=1000))
            worker.ask(pickle.dumps(({{"completions": [text]}}, 1)), 1)
            return worker, worker.answer()

        idle, (process,) = call("process", "")
        print(int(process), flush=True)
        call("busy", {str(tmp_path / "busy")!r})
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    trainer = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    idle = int(trainer.stdout.readline())
    wait_for(lambda: (tmp_path / "busy").exists() and (tmp_path / "busy").read_text())
    busy = int((tmp_path / "busy").read_text())
    assert alive(idle) and alive(busy)
    trainer.kill()
    trainer.communicate()
    wait_for(lambda: not alive(idle) and not alive(busy))


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
