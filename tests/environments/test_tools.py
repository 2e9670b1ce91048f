"""TRL's contract, as TRL 1.16 keeps it."""

import asyncio
import subprocess
import sys

import pytest
from support.environments import Counter, Guess, Silent, Undocumented
from support.paths import PYTHONPATH
from transformers.utils import get_json_schema

from align.environments import tools
from align.environments.contract import Call, Description, Finish, Message, Observation, Opening, Reply, Start
from align.system.failure import Failure


def calls(*made):
    return Reply("", tuple(Call(name, arguments) for name, arguments in made))


@pytest.fixture
def counter():
    """One that stands at 0."""
    one = Counter()
    assert tools.reset(one, Start({"prompt": "?", "level": 3}, 0), asyncio.run) == Opening("")
    assert one.seen == ["level", "prompt"]
    return one


def step(instance, *made):
    return tools.step(instance, calls(*made), asyncio.run)


def test_reset_gives_text_or_none():
    assert tools.reset(Counter(), Start({"start": 4}, 0), asyncio.run) == Opening(" It stands at 4.")


@pytest.mark.parametrize("found", ["3", "[{'type': 'text', 'text': 'x'}]", "('x', {})"])
def test_reset_gives_nothing_else(found):
    class Own:
        def reset(self, **row):
            return eval(found)

    with pytest.raises(ValueError, match="reset returned .*; return a text or None"):
        tools.reset(Own(), Start({}, 0), asyncio.run)


def test_tools_are_the_public_functions_of_the_class_in_trls_order():
    """As `GRPOTrainer.__init__` finds them: no property is evaluated, and `getmembers` sorts."""
    assert list(tools.methods(Counter())) == ["add", "add_later", "own_loop", "terrible"]
    assert list(tools.methods(Guess())) == ["step"]


def test_schemas_are_those_of_transformers_and_load_no_torch():
    names = ("add", "add_later", "own_loop", "terrible")
    assert tools.schemas(Counter()) == [get_json_schema(getattr(Counter(), name)) for name in names]
    code = """
import sys
from support.environments import Counter
from align.environments.tools import schemas
assert schemas(Counter()) and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": PYTHONPATH})


def test_a_tool_that_cannot_be_shown_is_named():
    with pytest.raises(ValueError, match="the tool add cannot be shown to a model: .*; write Google's docstring"):
        tools.schemas(Undocumented())


def test_calls_of_a_turn_run_in_their_order(counter):
    found = step(counter, ("add", {"number": 2}), ("add", {"number": 3}))
    assert found == Observation([Message("tool", "2", "add"), Message("tool", "5", "add")], None, calls=2)


def test_a_turn_without_calls_ends_the_episode(counter):
    assert tools.step(counter, Reply("done"), asyncio.run) == Observation([], "terminated")


@pytest.mark.parametrize(
    "name, arguments, error",
    [
        ("guess", {}, "Tool guess not found."),
        ("reset", {}, "Tool reset not found."),
        ("get_reward", {}, "Tool get_reward not found."),
        ("_hidden", {}, "Tool _hidden not found."),
        ("kind", {}, "Tool kind not found."),
        ("__init__", {}, "Tool __init__ not found."),
        ("add", {}, "Counter.add() missing 1 required positional argument: 'number'"),
        ("add", {"number": 1, "more": 2}, "Counter.add() got an unexpected keyword argument 'more'"),
        ("add", {"number": "x"}, "unsupported operand type(s) for +=: 'int' and 'str'"),
        ("add", [1], "support.environments.Counter.add() argument after ** must be a mapping, not list"),
        ("add", "1", "support.environments.Counter.add() argument after ** must be a mapping, not str"),
        ("add", None, "support.environments.Counter.add() argument after ** must be a mapping, not NoneType"),
        ("add_later", {"number": -1}, "no less"),
        ("add_later", {}, "Counter.add_later() missing 1 required positional argument: 'number'"),
    ],
)
def test_what_fails_is_told_to_the_model_in_trls_form(counter, name, arguments, error):
    found = step(counter, (name, arguments), ("add", {"number": 1}))
    told = Message("tool", str({"error": error}), name)
    assert told in found.messages and Message("tool", "1", "add") in found.messages
    assert (found.ended, found.calls, found.failed_calls) == (None, 2, 1)


def test_a_call_of_another_kind(counter):
    found = tools.step(counter, Reply("", (Call("x", {}, "custom"),)), asyncio.run)
    assert found.messages == [Message("tool", "{'error': 'Unsupported tool call type: custom'}", "x")]


def test_async_tools_run_side_by_side_behind_the_others(counter):
    made = ("add_later", {"number": 1, "seconds": 0.05}), ("add_later", {"number": 2}), ("add", {"number": 4})
    found = step(counter, *made)
    told = [(message.name, message.content) for message in found.messages]
    assert told == [("add", "4"), ("add_later", "7"), ("add_later", "6")]  # the second has not waited for the first


def test_a_tool_may_run_a_loop_of_its_own(counter):
    assert step(counter, ("own_loop", {})).messages == [Message("tool", "ran", "own_loop")]


def test_results_are_written_as_text():
    assert step(Silent(), ("step", {"far": 2})).messages == [Message("tool", "[2, 'steps']", "step")]


@pytest.mark.parametrize("error", ["SystemExit(1)", "KeyboardInterrupt()", "MemoryError()"])
@pytest.mark.parametrize("how", ["sync", "async"])
def test_what_is_no_error_of_a_tool_is_raised(error, how):
    class Own:
        def sync(self):
            raise eval(error)

    async def later(self):
        raise eval(error)

    Own.async_ = later
    with pytest.raises(type(eval(error))):
        tools.step(Own(), Reply("", (Call("sync" if how == "sync" else "async_", {}),)), asyncio.run)


@pytest.mark.parametrize("total, reward", [(3, 3.0), (16, None)])
def test_get_reward_and_the_attributes_that_a_reward_function_reads(counter, total, reward):
    counter.total = total
    found = tools.finish(counter, asyncio.run)
    assert found.reward == reward
    assert found.attributes == {"total": total, "reward": 0.0, "seen": ["level", "prompt"], "loops": []}


def test_get_reward_may_be_missing_or_async():
    class Own:
        async def get_reward(self):
            return True

    assert tools.finish(Own(), asyncio.run).reward == 1.0 and tools.scores(Own())
    assert tools.finish(Silent(), asyncio.run).reward is None and not tools.scores(Silent())


# ---- in its process


def test_an_episode(nursery, talk):
    one = nursery("Counter")
    described = one.wait()
    assert (described.name, described.contract, described.scores) == ("Counter", "tools", True)
    assert described.tools == tools.schemas(Counter())
    turns = calls(("add", {"number": 5})), calls(("add_later", {"number": 1})), calls(("add_later", {"number": 1}))
    opening, *_, last, outcome = talk(one.instance(0), Start({"start": 1}, 0), *turns, Reply("done"), Finish())
    assert opening.text == " It stands at 1." and last.ended == "terminated"
    assert outcome.reward == 8.0 and len(set(outcome.attributes["loops"])) == 1  # one loop for all turns


def test_a_function_may_make_it(nursery):
    assert nursery("made", {"high": 3}).wait() == Description("Guess", "text", [], False)


@pytest.mark.parametrize("what", ["raise", "flood"])
def test_a_tool_that_raises_or_prints_does_not_fail_its_episode(lasting, talk, what):
    asked = Start({}, 0), calls(("terrible", {"what": what})), Finish()
    _, found, outcome = talk(lasting("Counter").instance(0), *asked)
    assert found.failed_calls == (what == "raise") and outcome.reward == 0.0


def test_a_result_that_is_too_long_fails_the_episode(lasting, talk):
    _, found = talk(lasting("Counter").instance(0), Start({}, 0), calls(*[("add", {"number": 10**4000})] * 300))
    assert isinstance(found, Failure) and "returned a text of" in found.why
