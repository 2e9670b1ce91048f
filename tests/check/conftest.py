"""A healthy recipe to break."""

import pytest
from support.broken import corpus


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return corpus.Bench(corpus.healthy(tmp_path))
