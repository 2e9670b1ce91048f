"""Objects by dotted path."""

import re

import pytest

from align.config.factories import load_object


@pytest.mark.parametrize("path", ["align.registry:LOSSES", "align.objectives.gfpo:gfpo", "pathlib:Path.home"])
def test_load_object(path):
    assert load_object(path) is not None


@pytest.mark.parametrize("path", ["", "x", "x:", ":x", "a/b:c", "x:y z", "http://x:y"])
def test_load_object_refuses_what_is_no_dotted_path(path):
    with pytest.raises(ValueError, match=re.escape(f"{path!r} is not a dotted path; write package.module:name")):
        load_object(path)


@pytest.mark.parametrize(
    "path, near",
    [
        ("rewards.maths:equal", "did you mean 'rewards.math'?"),
        ("rewards.math:equals", "did you mean 'equal'?"),
        ("reward.math:equal", "did you mean 'rewards'?"),
        ("align.registry:OBJECTIVE", "did you mean 'OBJECTIVES'?"),
        ("rewards.math:zzz", "has no attribute 'zzz'"),
    ],
)
def test_the_nearest_module_or_attribute_is_named(path, near):
    with pytest.raises(ValueError, match=re.escape(near) + "$"):
        load_object(path)
