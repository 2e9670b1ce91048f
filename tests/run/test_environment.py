"""What is set before torch is imported: the variables of one process, and which lines of libraries pass."""

import logging
import os
import subprocess
import sys

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from support.launch import heed_ctrl_c
from support.paths import ROOT

from align.run import environment
from align.run.arguments import Asked
from align.run.environment import BY_ACCELERATE, EXPECTED, LAUNCHED, one_process, unexpected, wants_verbose


def test_one_process_has_what_accelerate_launch_sets_for_it(monkeypatch):
    for name in (name for name in os.environ if name.startswith("ACCELERATE_")):
        monkeypatch.delenv(name)
    words = ["--config_file", str(ROOT / "launch/cpu.yaml"), "--main_process_port", "0", "train.py"]
    args, defaults, mixed_precision = _validate_launch_command(launch_command_parser().parse_args(words))
    fields = [*defaults.deepspeed_config, *(["mixed_precision"] if mixed_precision else [])]
    args.deepspeed_fields_from_accelerate_config = ",".join(fields)  # as `launch_command` does
    _, launched = prepare_deepspeed_cmd_env(args)
    mine = one_process({})
    of_accelerate = "ACCELERATE_"
    expected = {name: value for name, value in launched.items() if name.startswith(of_accelerate)}
    assert {name: value for name, value in mine.items() if name.startswith(of_accelerate)} == expected
    assert mine["RANK"] == mine["LOCAL_RANK"] == "0" and mine["WORLD_SIZE"] == mine["LOCAL_WORLD_SIZE"] == "1"
    assert int(mine["MASTER_PORT"]) > 0


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_launcher_s_environment_stays(name):
    assert one_process({name: "0"}) == {}


def test_accelerate_without_a_config_file_leaves_it_to_us():
    assert one_process({"ACCELERATE_MIXED_PRECISION": "no"})["RANK"] == "0"


def test_lines_that_every_start_gives_are_left_out_and_others_are_not():
    def line(logger, text):
        return unexpected(logging.LogRecord(logger, logging.WARNING, "", 0, text, (), None))

    for logger, start in EXPECTED.items():
        assert not line(logger, f"{start} and so on.")
        assert line(logger, "out of memory")


@pytest.mark.parametrize(
    "text, overrides, expected",
    [
        ("run: {verbose: true}", (), True),
        ("run: {out: x}", (), False),
        ("run: {out: x}", ("run.verbose=true",), True),
        ("run: {verbose: true}", ("run.verbose=false",), False),
        ("run: wrong", (), False),
        ("no: [yaml", (), False),
    ],
)
def test_verbose_is_read_before_the_recipe_is_checked(tmp_path, text, overrides, expected):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert wants_verbose(Asked(str(path), overrides, False)) is expected
    assert not wants_verbose(Asked(str(tmp_path / "absent.yaml"), overrides, False))


@pytest.mark.parametrize("value, expected", [("1", True), ("0", False), ("", False), (None, False)])
def test_verbose_by_the_environment(monkeypatch, value, expected):
    monkeypatch.delenv(environment.VERBOSE, raising=False)
    if value is not None:
        monkeypatch.setenv(environment.VERBOSE, value)
    assert environment.verbose() is expected


PREPARED = """
import os, signal, sys
from align.run.environment import prepare
prepare(["recipe.yaml"])
names = ("TORCH_CPP_LOG_LEVEL", "VLLM_LOGGING_LEVEL", "RANK")
launcher = os.environ.get("ALIGN_LAUNCHER")
print(*map(os.environ.get, names), os.getcwd() in sys.path, "the parent" if launcher == str(os.getppid()) else launcher)
print(signal.getsignal(signal.SIGINT) is signal.SIG_DFL, "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    "more, expected",
    [
        ({}, "ERROR ERROR 0 True None"),
        ({"ALIGN_VERBOSE": "1"}, "None INFO 0 True None"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, "ERROR ERROR 0 True the parent"),
    ],
)
def test_what_prepare_leaves(tmp_path, more, expected):
    """In a process of its own: torch must not be imported yet."""
    known = {
        name: value for name, value in os.environ.items() if name not in (*LAUNCHED, *environment.QUIET, BY_ACCELERATE)
    }
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(PREPARED)
    (tmp_path / "recipe.yaml").touch()
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**known, "PYTHONPATH": str(ROOT), **more},
        preexec_fn=heed_ctrl_c,
        capture_output=True,
        text=True,
        timeout=60,
    )
    told, *found = done.stdout.splitlines()
    assert told.startswith("one process, as with launch/cpu.yaml") and "launch/cpu_zero2.yaml" in told
    assert found == [expected, "True False"], done.stderr


@pytest.mark.parametrize(
    "words, code, told",
    [([], 2, "Missing argument"), (["x.yaml", "--resum"], 2, "--resum"), (["--help"], 0, "Usage: recipes/train.py")],
)
def test_a_wrong_command_line_is_told_in_one_line_before_anything_is_imported(words, code, told):
    command = [sys.executable, "-X", "importtime", str(ROOT / "recipes/train.py"), *words]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == code and "| torch\n" not in done.stderr
    if code:
        assert len(lines) == 1 and told in lines[0] and "Usage: python recipes/train.py RECIPE" in lines[0]
        assert done.stdout == ""
    else:
        assert told in done.stdout and lines == []
