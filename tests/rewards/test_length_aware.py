import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import gym
from rewards.length_aware import accuracy


def given_values(prompts, completions, completion_ids, *, value, truncated, **columns):
    assert len(truncated) == len(value)
    return value


def shaped(value, length, truncated=False, **keys):
    path = f"{__name__}:given_values"
    (result,) = accuracy([None], ["x"], [[0] * length], truncated=[truncated], value=[value], correct=path, **keys)
    return result


@pytest.mark.parametrize(
    ("value", "length", "result"),
    [
        (1.0, 1000, 1),
        (1.0, 25600, 1),
        (1.0, 28672, 0.75),
        (1.0, 31744, 0.5),
        (1.0, 40000, 0.5),
        (0.0, 0, -1),
        (0.0, 1851, -0.75),
        (0.0, 3702, -0.5),
        (0.0, 31744, -0.5),
        (0.9999999999, 10, 1),
        (0.9, 0, -1),
    ],
)
def test_goldens(value, length, result):
    assert shaped(value, length) == pytest.approx(result)


def test_truncated_is_half_wrong_whatever_it_says():
    assert shaped(1.0, 10, truncated=True) == shaped(0.0, 0, truncated=True) == -0.5


def test_not_applicable_stays_so():
    assert shaped(None, 10) is None
    assert shaped(None, 10, truncated=True) is None


@given(st.booleans(), st.integers(0, 300), st.integers(0, 300))
def test_correct_never_rises_and_wrong_never_falls_with_length(right, short, more):
    keys = {"max_tokens": 200, "positive_tokens": 100, "negative_tokens": 50}
    before, after = (shaped(float(right), n, **keys) for n in (short, short + more))
    if right:
        assert 1 >= before >= after >= 0.5
    else:
        assert -1 <= before <= after <= -0.5


def test_default_asks_the_gym():
    rows = gym.prompts("chain_sum", size=2)
    columns = {key: [row[key] for row in rows] for key in ("answer", "task", "entry")}
    completions = [rows[0]["answer"], "no idea"]
    values = accuracy(None, completions, [[1], []], truncated=[False, False], **columns)
    assert values == [1, -1]


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"positive_tokens": 31744}, "positive_tokens"),
        ({"positive_tokens": -1}, "positive_tokens"),
        ({"negative_tokens": 0}, "negative_tokens"),
    ],
)
def test_wrong_keys_raise(keys, name):
    with pytest.raises(ValueError, match=name):
        shaped(1.0, 1, **keys)


def test_path_that_leads_nowhere_raises():
    with pytest.raises(AttributeError):
        accuracy(None, [], [], truncated=[], correct="rewards.gym:no_such_task")
