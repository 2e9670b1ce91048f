"""No command prints a secret or what acts on a terminal, in a message or in a traceback."""

import json

import pytest
import yaml
from support.hostile_text import acting
from typer.testing import CliRunner

from align.__main__ import app, tell

PLANTED = "planted-8271"


@pytest.mark.parametrize("command", ["credit", "annotate"])
def test_messages(tmp_path, command):
    recipe = tmp_path / "recipe.yaml"
    args = {"url": f"postgres://me:{PLANTED}@host/db", "dbpassword": PLANTED, "shown": "\x1b[31m"}
    data = {"prompts": "prompts.jsonl", "args": args}
    rest = {"objective": {"name": "gfpo", "k": 2}, "run": {"out": "x", "steps": 1}, "optim": {"lr": "x"}}
    recipe.write_text(yaml.safe_dump({"model": {"policy": "some/model"}, "data": data, **rest}))
    rollouts = tmp_path / "rollouts.jsonl"
    rollouts.write_text(json.dumps({"group": f"token={PLANTED}\x1b[2J", "response_ids": [1], "reward": 1}) + "\n")
    files = [str(recipe), str(rollouts)] if command == "credit" else [str(recipe)]
    for overrides in ([], [f"rewards.x.api_key={PLANTED} \x1b[2J"], [f"password={PLANTED}"]):
        done = CliRunner().invoke(app, [command, *files, *overrides])
        assert done.exit_code and PLANTED not in done.output
        assert not acting(done.output)


def test_an_error_names_no_secret_of_its_recipe(capsys):
    tell(f"row 3: {PLANTED}\x1b[2J is no answer; write key=value", {"args": {"secret": PLANTED}})
    assert capsys.readouterr().err == "row 3: [redacted]\\x1b[2J is no answer; write key=value\n"
