"""Loading recipes that are changed."""

import sys

import pytest
from support.recipes import BASE, CODE

from align.config.experiment import load_experiment


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A function: loads the base recipe with text replaced or appended, and with overrides."""
    (tmp_path / "user_code.py").write_text(CODE)
    (tmp_path / "broken_code.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)

    def load_changed(*changes, overrides=()):
        text = BASE
        for change in changes:
            if isinstance(change, tuple):
                assert text.count(change[0]) == 1, change
                text = text.replace(*change)
            else:
                text += change
        (tmp_path / "recipe.yaml").write_text(text)
        return load_experiment(tmp_path / "recipe.yaml", overrides)

    yield load_changed
    sys.modules.pop("user_code", None)
