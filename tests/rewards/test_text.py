import subprocess
import sys

import pytest

from rewards import text


def test_plain_completion_is_itself():
    assert text("a\nb") == "a\nb"


def test_conversational_completion_keeps_only_the_assistant():
    messages = [
        {"role": "assistant", "content": "let me see"},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "7"},
    ]
    assert text(messages) == "let me see\n7"


def test_content_that_is_no_string_raises():
    with pytest.raises(TypeError):
        text([{"role": "assistant", "content": None}])


def test_no_reward_imports_torch():
    names = "rewards.gym, rewards.math, rewards.format, rewards.length, rewards.length_aware"
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
