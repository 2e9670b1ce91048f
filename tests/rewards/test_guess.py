"""The number game: its rules, and what ways to play it come to."""

import random
from fractions import Fraction

import pytest

from align.environments import text
from align.environments.contract import Reply, Start
from rewards.guess import WAYS, Guess, expected


def game(secret, **rules):
    """A game whose number is known, begun."""
    found = Guess(**rules)
    found.reset(seed=0, prompt=[])
    found._secret = secret
    return found


def test_hints_and_what_a_guess_earns():
    one = game(6)
    assert one.step("4") == (
        "Higher than 4.",
        0.1,
        False,
        False,
        {"success": False, "anchor": "5-8"},
    )
    assert one.step("I guess 3!")[:2] == ("Higher than 3.", 0.0)  # the hints exclude it
    assert one.step("8.")[1] == 0.1
    assert one.step("dunno") == ("Say a number from 1 to 8.", 0.0, False, False, {"success": False, "anchor": "5-7"})
    assert one.step("6 or 7") == ("Yes!", 1.0, True, False, {"success": True, "anchor": "5-7"})


@pytest.mark.parametrize("reply", ["", "four", "٤", "9" * 5000, "12345678"])
def test_what_is_no_number_tells_nothing(reply):
    one = game(4)
    assert one.step(reply) == ("Say a number from 1 to 8.", 0.0, False, False, {"success": False, "anchor": "1-8"})


def test_a_number_out_of_range_is_no_guess_that_the_hints_allow():
    one = game(4)
    assert one.step("9")[:2] == ("Lower than 9.", 0.0) and (one.first, one.last) == (1, 8)


def test_the_episodes_seed_decides_and_all_numbers_are_asked_for():
    def secret(seed):
        random.seed(seed)
        one = Guess()
        told = one.reset(seed=seed, prompt=[])
        assert told == ("Guess my number. It is from 1 to 8. Say only a number.", {"success": False, "anchor": "1-8"})
        return one._secret

    assert [secret(seed) for seed in range(99)] == [secret(seed) for seed in range(99)]
    assert {secret(seed) for seed in range(99)} == set(range(1, 9))


def test_it_keeps_the_contract():
    one = Guess()
    opening = text.reset(one, Start({"prompt": [], "seed": 1}, 1), None)
    assert opening.anchor == "1-8" and opening.text.startswith("Guess")
    seen = text.step(one, Reply(str(one._secret)), None)
    assert (seen.ended, seen.reward, seen.success, seen.anchor) == ("terminated", 1.0, True, "1-8")
    assert text.finish(one, None).attributes["low"] == 1


def test_an_instance_forgets_the_last_game():
    one = game(4)
    one.step("6")
    one.reset(seed=1)
    assert (one.first, one.last) == (1, 8)


# The ways to play


def test_the_ways_by_hand():
    found = {way: expected(way) for way in WAYS}
    any_number = 1 - Fraction(7, 8) ** 4
    assert found["any number"].success == any_number
    assert found["the middle of what the hints leave"] == (1, Fraction(21, 8), Fraction(93, 80))
    assert found["the lowest that the hints leave"] == (Fraction(1, 2), Fraction(26, 8), Fraction(31, 40))
    assert [round(float(one.success), 3) for one in found.values()] == [0.414, 0.5, 0.844, 1.0]
    assert [round(float(one.turns), 2) for one in found.values()] == [3.31, 3.25, 2.91, 2.62]


@pytest.mark.parametrize("way", WAYS)
def test_the_ways_against_games(way):
    """All of three turns in a range of four, each guess as likely as it is, played by the environment itself."""
    total = Fraction(0), Fraction(0), Fraction(0)
    for secret in range(1, 5):
        for found in played(way, game(secret, high=4), 3):
            total = tuple(x + y / 4 for x, y in zip(total, found, strict=True))
    assert total == expected(way, high=4, turns=3)


def played(way, one, turns):
    """(chance to be found, chance times turns, chance times reward) of each course that a game may take."""
    guesses = list(WAYS[way](one.low, one.high, one.first, one.last))
    before = one.first, one.last
    for guess in guesses:
        one.first, one.last = before
        _, reward, found, _, _ = one.step(str(guess))
        share = Fraction(1, len(guesses))
        reward = Fraction(reward).limit_denominator(10)
        yield share * found, share, share * reward
        if not found and turns > 1:
            yield from (tuple(share * x for x in rest) for rest in played(way, one, turns - 1))
    one.first, one.last = before


def test_no_way_to_play_needs_fewer_turns_than_the_middle():
    def fewest(size):  # the sum of the turns over all numbers
        if size == 0:
            return 0
        return size + min(fewest(left) + fewest(size - 1 - left) for left in range(size))

    assert Fraction(fewest(8), 8) == expected("the middle of what the hints leave").turns
