"""What a run is made of: a launcher that starts no DeepSpeed is refused before anything is joined."""

import pytest

from align.config.recipe_file import ConfigError
from align.run.setup import make_accelerator


def test_a_launcher_without_deepspeed_is_told_what_to_write(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    with pytest.raises(ConfigError) as raised:
        make_accelerator(None)
    (problem,) = raised.value.problems
    assert "accelerate launch --config_file launch/cpu_zero2.yaml" in problem and "\n" not in problem
