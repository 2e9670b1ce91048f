"""The layout of `align/`: a room imports only from floors below it, and no file outgrows its reader."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import PYTHONPATH

PACKAGE = Path(__file__).parents[1] / "align"

# Rooms, from the ground up. A folder is one room; rooms on one floor do not import each other.
FLOORS = [
    {"system", "batch.py", "ops.py", "ranges.py"},
    {"transforms", "losses", "ranks"},
    {"objectives"},
    {"credit.py", "registry.py"},
    {"config"},
    {"model", "data"},
    {"learner", "scoring", "environments"},
    {"rollout", "result", "checkpoint"},
    {"metrics"},
    {"loop.py", "check", "replay.py"},
    {"xray"},
    {"run"},
    {"commands", "train.py"},
    {"__main__.py"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Importing what a process of user code imports must not load torch: these packages import nothing by themselves.
EMPTY = ("", "config", "environments", "scoring", "system")

FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.parts[0]


def imported(path: Path) -> set[str]:
    """The files and folders of `align/` that a file imports, also inside its functions."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "align":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("align.")}
    return {name if (PACKAGE / name).is_dir() else f"{name}.py" for name in found}


def test_every_room_has_a_floor():
    assert {room_of(path) for path in FILES} - {"__init__.py"} == set(FLOOR)


@pytest.mark.parametrize("path", [path for path in FILES if str(path) != "__init__.py"], ids=str)
def test_a_room_imports_only_from_floors_below_it(path):
    own = room_of(path)
    above = {other for other in imported(path) - {own, "__init__.py"} if FLOOR[other] >= FLOOR[own]}
    assert not above, f"align/{path} imports {', '.join(sorted(above))}, which does not stand below {own}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_name_the_whole_path(path):
    """The tests of this file do not read relative imports."""
    tree = ast.parse((PACKAGE / path).read_text())
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize("room", sorted(room for room in FLOOR if (PACKAGE / room).is_dir()))
def test_no_circle_within_a_folder(room):
    """Files of a folder can be put in an order in which each imports only earlier ones."""
    files = {path.stem: path for path in (PACKAGE / room).glob("*.py") if path.name != "__init__.py"}
    asks = {name: _siblings(path, room) & set(files) for name, path in files.items()}
    while asks:
        free = {name for name, needed in asks.items() if not needed & set(asks)}
        assert free, f"align/{room}: a circle among {', '.join(sorted(asks))}"
        asks = {name: needed for name, needed in asks.items() if name not in free}


def _siblings(path: Path, room: str) -> set[str]:
    """The names that a file imports from its own folder."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == f"align.{room}":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"align.{room}."):
            found.add(node.module.split(".")[2])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[2] for alias in node.names if alias.name.startswith(f"align.{room}.")}
    return found


def test_all_ways_to_import_a_sibling_are_read(tmp_path):
    lines = [
        "import align.room.a",
        "import align.room.b as c",
        "from align.room.d import e",
        "from align.room import f",
    ]
    (tmp_path / "module.py").write_text("\n".join([*lines, "import align.other.g", "from align.other.h import i"]))
    assert _siblings(tmp_path / "module.py", "room") == set("abdf")


def test_at_most_ten_modules_stand_beside_the_folders():
    assert len(list(PACKAGE.glob("*.py"))) <= 10


@pytest.mark.parametrize("package", EMPTY)
def test_packages_that_reward_processes_pass_through_import_nothing(package):
    tree = ast.parse((PACKAGE / package / "__init__.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize("module", ["align.scoring.process", "align.environments.process"])
def test_the_process_of_user_code_loads_neither_torch_nor_transformers(module):
    code = f"import {module}, sys; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": PYTHONPATH})


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_and_functions_are_short(path):
    text = (PACKAGE / path).read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 50, f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
