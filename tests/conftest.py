import pytest
from hypothesis import settings

settings.register_profile("no deadline", deadline=None)  # the first call pays for imports, on a shared machine
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The path of the tiny model."""
    from support import tiny_model  # not for tests that need no torch

    return str(tiny_model.save_model(tmp_path_factory.mktemp("tiny")))
