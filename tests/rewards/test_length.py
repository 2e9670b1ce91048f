import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.length import length_penalty, soft_overlong


def overlong(length, **keys):
    keys = {"max_tokens": 20480, "buffer": 4096} | keys
    (value,) = soft_overlong(None, ["not the text"], [[0] * length], truncated=[True], **keys)
    return value


@pytest.mark.parametrize(("length", "value"), [(0, 0), (1000, 0), (16384, 0), (18432, -0.5), (20480, -1)])
def test_soft_overlong_goldens(length, value):
    assert overlong(length) == value
    assert overlong(length, factor=0.5) == value / 2


@given(st.integers(0, 300), st.integers(0, 300))
def test_soft_overlong_never_rises_with_length(short, more):
    keys = {"max_tokens": 200, "buffer": 100}
    assert overlong(short + more, **keys) <= overlong(short, **keys) <= 0


@pytest.mark.parametrize(
    ("keys", "name"), [({"buffer": 0}, "buffer"), ({"buffer": 20481}, "buffer"), ({"factor": -1}, "factor")]
)
def test_wrong_keys_of_soft_overlong_raise(keys, name):
    with pytest.raises(ValueError, match=name):
        overlong(1, **keys)


def test_length_penalty_is_per_token():
    assert length_penalty(None, ["a", "b"], [[], [7] * 4], per_token=0.5, answer=[1, 2]) == [0, -2]
    with pytest.raises(ValueError, match="per_token"):
        length_penalty(None, [], [], per_token=-1)
