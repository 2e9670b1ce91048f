"""The contract of text: Gymnasium's five values, with strings."""

import asyncio

import pytest
from support.environments import AsyncGuess, Guess, Returns

from align.environments import text
from align.environments.contract import MOST_TEXT, Finish, Message, Observation, Opening, Reply, Start
from align.system.failure import Failure


def step(action, instance=None):
    return text.step(instance or Returns(), Reply(action), asyncio.run)


def test_an_episode():
    guess = Guess(8)
    opening = text.reset(guess, Start({"seed": 3, "level": 1}, 0), asyncio.run)
    assert opening == Opening("Guess 1..8.", {k: v for k, v in opening.info.items() if k != "object"}, "new")
    assert set(opening.info) == {"number", "process", "anchor"} and guess.row == {"level": 1}
    guess.number = 5
    assert step("3", guess) == Observation(
        [Message("user", "higher")], None, 0.0, False, {"success": False, "anchor": "after 3"}, "after 3"
    )
    assert step("x", guess) == Observation([Message("user", "Say a number.")], None, -0.5)
    found = step("5", guess)
    assert (found.ended, found.reward, found.success) == ("terminated", 1.0, True)
    assert text.finish(guess, asyncio.run).reward is None


def test_it_may_be_async(nursery, talk):
    one = nursery("AsyncGuess").instance(0)
    opening, found, _ = talk(one, Start({}, 1), Reply("0"), Finish())
    assert opening.text == "Guess 1..8." and found.messages == [Message("user", "higher")]
    assert asyncio.iscoroutinefunction(AsyncGuess.step)


@pytest.mark.parametrize(
    "five, ended",
    [
        ("'', 0, False, True, {}", "truncated"),
        ("'', 0, True, True, {}", "terminated"),
        ("'', 0, __import__('numpy').True_, False, {}", "terminated"),
        ("'', 0, False, False, {}", None),
    ],
)
def test_how_an_episode_ends(five, ended):
    assert step(five).ended == ended


WRONG = [
    ("None", "step returned None; return (text, reward, terminated, truncated, info)"),
    ("'', 0, False, {}", "step returned ('', 0, False, {}); return"),
    ("3, 0, False, False, {}", "step returned (3, 0, False, False, {}); return"),
    ("'', 0, False, False, None", "step returned ('', 0, False, False, None); return"),
    ("'', 0, 'no', False, {}", "step returned 'no' as terminated; write True or False"),
    ("'', 0, False, 1, {}", "step returned 1 as truncated; write True or False"),
    ("'', 0, False, False, {'success': 1}", 'step returned 1 as info["success"]; write True or False'),
    (f"'x' * {MOST_TEXT + 1}, 0, False, False, {{}}", f"returned a text of {MOST_TEXT + 1} characters"),
]


@pytest.mark.parametrize("five, why", WRONG)
def test_a_step_of_another_form(five, why):
    with pytest.raises(ValueError) as caught:
        step(five)
    assert str(caught.value).startswith(why)


@pytest.mark.parametrize("reward", ["float('nan')", "'1'", "1e39", "10 ** 400", "1j"])
def test_a_reward_that_is_no_number(reward):
    found = step(f"'', {reward}, False, False, {{}}")
    assert isinstance(found, Failure) and "return a" in found.why


@pytest.mark.parametrize("two", ["None", "'text'", "('text',)", "(None, {})", "('text', None)", "('text', {}, 1)"])
def test_a_reset_of_another_form(two):
    with pytest.raises(ValueError, match=r"reset returned .*; return \(text, info\)"):
        text.reset(Returns(), Start({"what": two}, 0), asyncio.run)


@pytest.mark.parametrize(
    "two, why", [("'text'", "reset returned 'text'"), (f"('x' * {MOST_TEXT + 1}, {{}})", "text of")]
)
def test_in_its_process_a_reset_of_another_form_is_a_failure(lasting, talk, two, why):
    found, again = talk(lasting("Returns").instance(0), Start({"what": two}, 0), Start({}, 0))
    assert isinstance(found, Failure) and why in found.why and again == Opening("")


@pytest.mark.parametrize("five, why", [*WRONG, ("'', float('nan'), False, False, {}", "returned nan; return a finite")])
def test_in_its_process_all_that_is_a_failure(lasting, talk, five, why):
    one = lasting("Returns").instance(0)
    opening, found, again = talk(one, Start({}, 0), Reply(five), Start({}, 0))
    assert isinstance(found, Failure) and why in found.why and opening == again == Opening("")
