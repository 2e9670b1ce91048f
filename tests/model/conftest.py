"""The tiny model, loaded."""

import pytest

from align.model.load import load_model


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, "float32")
