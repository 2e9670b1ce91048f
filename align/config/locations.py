"""Find relative paths and modules of a recipe: beside the recipe first, then in the working directory.

Modules are looked for among what is installed after that; one of the user's own with the name of an installed one is
refused, as whichever came first would hide the other.
"""

from __future__ import annotations

import difflib
import filecmp
import os
import re
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import align

# {section: keys whose value may be a path of a file or folder to read}
PATHS = {
    "model": {"policy", "chat_template", "guide", "from"},
    "data": {"prompts", "pairs", "bank", "eval_prompts"},
    "run": {"resume"},
}

ARGUMENTS = ("args", "eval_args")  # what is below them is the user's, and no path of ours

MODULE = re.compile(r"(\w+(?:\.\w+)*):\w+(?:\.\w+)*")  # package.module:name


def find(path: str, folder: str) -> str:
    """The path in `folder` where something is there, else as it is: of the working directory, or no path."""
    beside = os.path.join(folder, path)
    return beside if path and os.path.exists(beside) else path


def with_paths(data: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The content of a recipe in `folder` with every path as `find` gives it."""
    return {key: _with_paths(value, PATHS[key], folder) if key in PATHS else value for key, value in data.items()}


def near(path: str, folder: str) -> str:
    """`; did you mean 'x'?` of a file that is not there, with the nearest name of one that is; empty where none is."""
    where, name = os.path.split(path)
    for place in (os.path.join(folder, where), where):
        there = sorted(os.listdir(place or ".")) if os.path.isdir(place or ".") else []
        if name in there:
            return f", but a {'folder' if os.path.isdir(os.path.join(place, name)) else 'device'} of this name"
        if close := difflib.get_close_matches(name, there, n=1):
            return f"; did you mean {os.path.join(where, close[0])!r}?"
    return ""


def import_from(folder: str) -> None:
    """Look for modules in `folder` first, then in the working directory; processes that are started later do too."""
    own = _own(folder)
    sys.path[:] = [*own, *(path for path in sys.path if os.path.abspath(path) not in own)]


def clash(path: str, folder: str) -> str | None:
    """Say which file of the user's has the name of an installed module that `path`, a dotted path, may mean too; None
    where there is only one."""
    named = MODULE.fullmatch(path)
    if named is None:
        return None
    name, *inner = named[1].split(".")
    own, folders = PathFinder.find_spec(name, _own(folder)), _own(folder)
    origin = _origin(own, inner)
    other = _installed(name, [path for path in sys.path if os.path.abspath(path) not in folders])
    if origin is None or other is None or Path(origin).is_relative_to(Path(align.__file__).parents[1]):
        return None
    if other.origin and os.path.isfile(other.origin) and filecmp.cmp(origin, other.origin, shallow=False):
        return None  # another copy of it
    return f"{os.path.relpath(origin)} has the name of the module {name!r}, which is installed; rename yours"


def _own(folder: str) -> list[str]:
    return list(dict.fromkeys([os.path.abspath(folder), os.getcwd()]))


def _origin(spec: ModuleSpec | None, inner: list[str]) -> str | None:
    """The file of a module; of a folder without `__init__.py` the file that the rest of the dotted name stands for."""
    if spec is None or spec.has_location:
        return spec and spec.origin
    files = [Path(place, *inner).with_suffix(".py") for place in spec.submodule_search_locations or () if inner]
    return next((str(file) for file in files if file.is_file()), None)


def _installed(name: str, paths: list[str]) -> ModuleSpec | None:
    """What Python would import under a name without the user's own folders."""
    found = (finder.find_spec(name, paths if finder is PathFinder else None) for finder in sys.meta_path)
    spec = next(filter(None, found), None)
    return spec if spec and spec.origin else None


def _with_paths(value: Any, names: set[str], folder: str, name: Any = None) -> Any:
    if isinstance(value, Mapping) and name not in ARGUMENTS:
        return {key: _with_paths(inner, names, folder, key) for key, inner in value.items()}
    return find(value, folder) if isinstance(value, str) and name in names else value
