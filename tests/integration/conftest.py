"""The tiny model that the engine tests run, and a guide for it."""

import pytest
from support import tiny_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tiny_model.save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def guide(folder, tmp_path_factory):
    """An adapter over the model, as a DPO run would leave it."""
    return tiny_model.save_guide(folder, tmp_path_factory.mktemp("guide"))
