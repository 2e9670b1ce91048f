"""What a run shows: lines in a log, a bar on a terminal."""

import io
import logging
import sys
import warnings
from types import ModuleType

import pytest
from rich.console import Console

from align.run import terminal
from align.run.terminal import (
    EVERY_S,
    StepBar,
    StepLines,
    duration,
    evaluation_of,
    progress,
    quiet,
    say,
    say_own,
    stage,
)


@pytest.fixture(autouse=True)
def main_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    for name in ("FORCE_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def metrics(reward: float, seconds: float) -> dict[str, float]:
    return {"reward/mean": reward, "response/length": 12.34, "seconds/generate": seconds, "seconds/other": 100.0}


def lines_of(seconds: float, steps: int, total: int, start: int = 0) -> list[str]:
    """The lines of a log of steps that take so many seconds each."""
    now, out = [1000.0], io.StringIO()
    shown = StepLines(total, start, Console(file=out, width=40), now=lambda: now[0])
    for done in range(start + 1, start + steps + 1):
        now[0] += seconds
        shown.step(done, metrics(done / 100, seconds))
    return out.getvalue().splitlines()


def test_a_log_has_a_line_of_the_first_and_the_last_step_and_every_half_minute():
    lines = lines_of(seconds=4.0, steps=20, total=20)
    assert [line.split()[1] for line in lines] == ["1/20", "9/20", "17/20", "20/20"]
    assert 4.0 * 7 < EVERY_S <= 4.0 * 8
    assert lines[1] == "step 9/20  reward 0.09  length 12.3  4.0 s a step  44 s left"  # in one line, however narrow


def test_slow_steps_have_a_line_each_and_a_resumed_run_counts_its_own():
    lines = lines_of(seconds=100.0, steps=3, total=60, start=50)
    assert [line.split()[1] for line in lines] == ["51/60", "52/60", "53/60"]
    assert lines[0].endswith("100.0 s a step  15 min left")


def test_steps_of_pairs_show_their_loss():
    out = io.StringIO()
    StepLines(2, 0, Console(file=out)).step(1, {"loss": 0.6931, "seconds/update": 1.5})
    assert out.getvalue().startswith("step 1/2  loss 0.693  1.5 s a step")


@pytest.mark.parametrize(
    "seconds, said", [(0.4, "0 s"), (119, "119 s"), (150, "2 min"), (7100, "118 min"), (9000, "2.5 h")]
)
def test_duration(seconds, said):
    assert duration(seconds) == said


def test_an_evaluation_in_one_line():
    found = {
        "eval/reward": 0.155,
        "eval/reward_low": 0.105,
        "eval/reward_high": 0.21,
        "eval/length": 19.125,
        "eval/length_low": 18.0,
        "eval/length_high": 20.2,
        "eval/greedy_reward": 0.5,
        "eval/rewards/accuracy": 0.3,
    }
    assert evaluation_of(found) == "reward 0.155 [0.105, 0.210]  length 19.1"
    pairs = {"eval/pairs/loss": 0.69, "eval/pairs/accuracy": 0.5, "eval/pairs/margin": 0.1}
    pairs |= {"eval/pairs/accuracy_low": 0.4, "eval/pairs/accuracy_high": 0.6}
    assert evaluation_of(pairs) == "pairs/loss 0.690  pairs/accuracy 0.500 [0.400, 0.600]"
    assert evaluation_of({"eval/pairs/one/loss": 0.5, "eval/pairs/two/loss": 0.6}) == (
        "pairs/one/loss 0.500  pairs/two/loss 0.600"
    )


def test_a_log_gets_lines_and_a_terminal_a_bar(monkeypatch, capsys):
    with progress(3, 0) as shown:
        assert isinstance(shown, StepLines)
        shown.step(1, metrics(0.5, 1.0))
    assert capsys.readouterr().out.startswith("step 1/3  reward 0.50")
    monkeypatch.setattr(terminal, "Console", lambda: Console(force_terminal=True, force_interactive=True, width=100))
    with progress(3, 0) as shown:
        assert isinstance(shown, StepBar)
        shown.step(1, metrics(0.5, 1.0))
        say("evaluation at step 1", console=shown.console)
    out = capsys.readouterr().out
    assert "evaluation at step 1" in out and "1/3" in out


def test_only_the_main_process_prints(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    say("nothing")
    with stage("engine"), progress(1, 0) as shown:
        shown.step(1, metrics(0.5, 1.0))
    assert capsys.readouterr().out == ""


def test_a_part_of_the_start_in_one_line(capsys):
    with stage("engine", "(compiles at the first start)") as notes:
        notes.append("[bold]reward[/bold] 0.1")  # no markup
    line = capsys.readouterr().out
    assert line.startswith("engine 0.0 s  (compiles at the first start)  [bold]reward[/bold] 0.1")
    with pytest.raises(ValueError), stage("engine"):
        raise ValueError
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("value, level", [("0", logging.WARNING), ("1", logging.DEBUG)])
def test_libraries_are_quiet_unless_they_are_asked_for(monkeypatch, value, level):
    backend, logger = ModuleType("backend"), logging.getLogger("DeepSpeed")
    monkeypatch.setenv("ALIGN_VERBOSE", value)
    monkeypatch.setitem(sys.modules, "deepspeed.comm.torch", backend)
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    with warnings.catch_warnings():
        quiet()
    assert logger.level == level and hasattr(backend, "print") == (value == "0")


def test_a_line_of_a_process_that_is_not_the_main_one_names_it(monkeypatch, capsys):
    say_own("http://a: lost")
    monkeypatch.setenv("RANK", "3")
    say_own("http://b: [red]lost")
    say("not told")
    assert capsys.readouterr().out == "http://a: lost\nrank 3: http://b: [red]lost\n"
