"""A step is sampled while the one before it is updated: whose policy, what is on disk, errors, what is hidden."""

import threading
import time

import pytest

from align.rollout.ahead import Ahead
from align.rollout.journal import Journal
from align.system.clock import Clock
from align.system.deadline import DeadlineError

MIXED = [(True, False)] * 8


class Policy:
    """The engine's `generate`, which notes the policy that it has when it begins and when it ends."""

    def __init__(self, engine, seconds=0.0):
        self.engine, self.seconds, self.now, self.seen = engine, seconds, 0, []
        self.generate, engine.generate = engine.generate, self

    def __call__(self, prompts, **rest):
        began = self.now
        time.sleep(self.seconds)
        self.seen.append((began, self.now))
        return self.generate(prompts, **rest)


def steps(made, policy, ahead, count):
    """The responses of each step, taken as the loop takes it."""
    found = []
    for step in range(count):
        found.append(made.collect(step, Clock()).sampled)
        ahead.begin(step + 1)
        time.sleep(0.02)  # the update
        ahead.wait(Clock())
        policy.now += 1  # the sync
    return found


def test_a_step_has_the_policy_one_step_behind_and_the_first_one_its_own(one_process, source):
    made, engine = source(MIXED, None)
    policy = Policy(engine)
    found = steps(made, policy, Ahead([made], 3, 5.0), 3)
    assert [{r.response.policy_step for r in step} for step in found] == [{0}, {0}, {1}]
    assert policy.seen == [(0, 0), (0, 0), (1, 1)]  # no policy was replaced while it sampled; none behind the last step
    plain, _ = source(MIXED, None)
    alone = [plain.collect(step, Clock()).sampled for step in range(3)]
    assert [[r.prompt for r in step] for step in found] == [[r.prompt for r in step] for step in alone]


def test_what_was_sampled_ahead_is_on_disk_when_the_wait_is_over(one_process, source):
    made, engine = source(MIXED, None)
    ahead = Ahead([made], 9, 5.0)
    ahead.begin(1)
    ahead.wait(Clock())
    asked = list(engine.asked)
    again = Journal(made.journal.folder, made.journal.lineage)
    object.__setattr__(made, "journal", again)
    assert {r.response.policy_step for r in made.collect(1, Clock()).sampled} == {0}
    assert engine.asked == asked  # a resumed run samples none of it


def test_rounds_of_dynamic_sampling_behind_the_first_are_of_the_policy_of_now(one_process, source):
    made, engine = source([(True, True)] * 8, 2)
    found = steps(made, Policy(engine), Ahead([made], 2, 5.0), 2)
    assert [sorted({r.response.policy_step for r in step}) for step in found] == [[0], [0, 1]]


def test_what_sampling_raises_is_raised_where_it_is_waited_for():
    class Broken:
        def sample_ahead(self, step):
            raise OSError(f"no server for step {step}")

    ahead = Ahead([Broken()], 9, 5.0)
    ahead.begin(4)
    with pytest.raises(OSError, match="no server for step 4"):
        ahead.wait(Clock())
    assert ahead.wait(Clock()) == {}  # and only once


def test_one_that_hangs_ends_at_the_deadline():
    never = threading.Event()

    class Hung:
        def sample_ahead(self, step):
            never.wait(30)

    ahead = Ahead([Hung()], 9, 0.2)
    ahead.begin(1)
    began = time.perf_counter()
    with pytest.raises(DeadlineError, match="generation: not done after 0.2 s"):
        ahead.wait(Clock())
    assert time.perf_counter() - began < 5
    never.set()


def test_hidden_is_the_share_of_sampling_that_nobody_waited_for():
    class Slow:
        done = threading.Event()

        def sample_ahead(self, step):
            time.sleep(0.3)
            self.done.set()

    ahead, clock = Ahead([Slow()], 9, 30.0), Clock()
    ahead.begin(1)  # and wait at once
    metrics = ahead.wait(clock)
    waited = clock.seconds()["seconds/generate"]
    assert waited == pytest.approx(metrics["overlap/seconds"] * (1 - metrics["overlap/hidden"]), abs=0.05)
    assert metrics["overlap/hidden"] < 0.5
    Slow.done.clear()
    ahead.begin(2)
    Slow.done.wait(30)  # an update that takes longer
    time.sleep(0.1)
    assert ahead.wait(Clock())["overlap/hidden"] > 0.9


def test_all_steps_are_sampled_in_one_thread_of_the_run():
    """The system ends a process with the thread that started it, such as those of environments."""

    class Noted:
        threads = []

        def sample_ahead(self, step):
            self.threads.append(threading.current_thread())

    ahead = Ahead([Noted()], 9, 5.0)
    for step in (1, 2):
        ahead.begin(step)
        ahead.wait(Clock())
    first, second = Noted.threads
    assert first is second and first.is_alive() and first.daemon
