"""A game of textarena as a text environment; skipped where it is not installed."""

import random

import pytest

from align.environments.contract import Environment, Finish, Limits, Reply, Start
from align.environments.nursery import Nursery

pytest.importorskip("textarena")

RULES = {"game": "GuessTheNumber-v0", "min_number": 1, "max_number": 8, "max_turns": 3}


@pytest.fixture(scope="module")
def game():
    """One instance of the game."""
    one = Nursery(Environment("guess", "align.environments.textarena:TextArena", RULES), Limits(seconds=20.0))
    assert one.wait().contract == "text"
    yield one.instance(0)
    one.close()


def number(seed):
    """What textarena draws: `random.seed(seed)`, then one of the range."""
    return random.Random(seed).randint(1, 8)


def test_a_game_that_is_won(game, talk):
    opening, wrong, right, outcome = talk(
        game, Start({"seed": 3, "prompt": "?"}, 0), Reply("[8]"), Reply(f"I say [{number(3)}]!"), Finish()
    )
    assert opening.text.startswith("You are Player 0. You are playing Guess The Number.\n") and number(3) < 8
    assert [message.content for message in wrong.messages] == ["The target number is lower."]
    assert (wrong.ended, wrong.reward, wrong.success) == (None, 0.0, None)
    assert (right.ended, right.reward, right.success) == ("terminated", 1.0, True)
    assert right.info["reason"] == "Congratulations! You guessed the correct number." and outcome.reward is None


def test_a_game_that_is_lost_and_what_was_said_is_said_once(game, talk):
    target = number(4)
    wrong = [guess for guess in range(1, 9) if guess != target][:4]  # one more than the rules say
    opening, *turns = talk(game, Start({"seed": 4}, 0), *[Reply(f"[{guess}]") for guess in wrong])
    assert "within 3 turns" in opening.text and not any("You are Player" in turn.messages[0].content for turn in turns)
    assert [turn.ended for turn in turns] == [None, None, None, "terminated"]
    assert turns[-1].reward == pytest.approx(1 - abs(wrong[-1] - target) / 7) and turns[-1].success is False


def test_a_move_without_brackets_is_mended_and_one_without_a_number_is_told(game, talk):
    _, mended, invalid, again = talk(game, Start({"seed": 3}, 0), Reply("8"), Reply("none"), Reply("none"))
    assert mended.messages[0].content == "The target number is lower."
    assert invalid.messages[0].content.startswith("You attempted an invalid move.") and invalid.ended is None
    assert again.ended == "terminated" and again.info["invalid_move"] is True
