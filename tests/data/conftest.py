"""Files of rows."""

import json

import datasets
import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path):
    """A function: rows to a JSON-lines file, text to a file of any name; returns its path."""

    def write(content, name="rows.jsonl"):
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write
