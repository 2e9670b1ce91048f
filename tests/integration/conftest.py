"""The tiny model that the engine tests run, and a guide for it."""

import pytest
import tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def guide(folder, tmp_path_factory):
    """An adapter over the model, as a DPO run would leave it."""
    return tiny.save_guide(folder, tmp_path_factory.mktemp("guide"))
