"""What travels between an episode and its environment."""

import math

import numpy as np
import pytest

from align.environments.contract import ANSWERS, MOST_INFO, MOST_TEXT, Finish, Outcome, plain, said


def test_plain_keeps_what_json_holds_in_its_order_and_leaves_out_the_rest():
    circle = []
    circle.append(circle)
    values = {
        "b": 1,
        "a": [True, None, "x", {"deep": 2.5}],
        "object": object(),
        "nan": math.nan,
        "circle": circle,
        3: "no text",
        "numpy": np.float32(0.5),
        "array": np.ones(2),
        "digits": 10**5000,
        "\ud800": "\ud800",
    }
    found = plain(values)
    assert found == {"b": 1, "a": [True, None, "x", {"deep": 2.5}], "numpy": 0.5, "?": "?"}
    assert list(found) == ["b", "a", "numpy", "?"]


def test_plain_keeps_so_much_only():
    half = "x" * (MOST_INFO // 2)
    assert list(plain({"long": "x" * MOST_INFO, "a": half, "b": 1, "c": half, "d": 2})) == ["a", "b", "d"]


@pytest.mark.parametrize("depth", range(150, 260, 5))
def test_what_is_too_deep_for_the_trainer_is_left_out(depth):
    deep = 1
    for _ in range(depth):
        deep = [deep]
    sent = ANSWERS[Finish].dump_json(Outcome(plain({"deep": deep})))
    found = ANSWERS[Finish].validate_json(sent, strict=True)
    assert found.attributes in ({}, {"deep": deep}) and (depth > 150 or found.attributes)


def test_a_text_travels_in_utf8_and_not_beyond_its_limit():
    assert said("a\ud800b") == "a?b" and len(said("x" * MOST_TEXT)) == MOST_TEXT
    with pytest.raises(ValueError, match=f"returned a text of {MOST_TEXT + 1} characters; at most {MOST_TEXT}"):
        said("x" * (MOST_TEXT + 1))
