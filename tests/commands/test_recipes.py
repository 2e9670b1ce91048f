"""`align recipes`: what comes with the package, in a clone and installed from a wheel."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from support.paths import ROOT

from align.commands.recipes import copy, first_comment, shipped
from align.config.recipe_file import ConfigError


def test_all_recipes_and_launch_files_are_listed_with_what_they_are():
    files = shipped()
    here = [path for folder in ("recipes", "launch") for path in (ROOT / folder).glob("*.yaml")]
    assert set(files) == {str(path.relative_to(ROOT)) for path in here}
    assert all(first_comment(path) for path in files.values())


def test_a_copy_comes_with_the_recipes_that_make_its_models(tmp_path):
    new = copy("tgdpo_reviews", tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in new}
    assert names == {f"recipes/{name}_reviews.yaml" for name in ("tgdpo", "dpo", "sft")}
    assert all((tmp_path / name).read_bytes() == (ROOT / name).read_bytes() for name in names)


@pytest.mark.parametrize("name", ["cpu_zero2", "cpu_zero2.yaml", "launch/cpu_zero2.yaml"])
def test_a_file_has_several_names(tmp_path, name):
    assert copy(name, tmp_path) == [tmp_path / "launch/cpu_zero2.yaml"]


def test_nothing_is_overwritten(tmp_path):
    mine = tmp_path / "recipes/sft_reviews.yaml"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert copy("dpo_reviews", tmp_path) == [tmp_path / "recipes/dpo_reviews.yaml"]
    assert mine.read_text() == "mine"
    with pytest.raises(ConfigError, match="there already"):
        copy("dpo_reviews", tmp_path)


def test_a_misspelt_name_gets_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'cpu_zero2'"):
        copy("cpu_zeroo2", tmp_path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "recipes").write_text("a file")
    with pytest.raises(ConfigError, match="sft_reviews.yaml cannot be written: .*name another --into"):
        copy("sft_reviews", tmp_path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "", "\0", "recipes/../pyproject.toml"])
def test_only_what_comes_with_the_package_is_copied(tmp_path, name):
    with pytest.raises(ConfigError, match="no recipe or launch file"):
        copy(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.engine
def test_a_wheel_has_the_command_the_recipes_and_the_launch_files(tmp_path):
    """Install the wheel in an environment that sees the libraries of this one, and check a copied recipe there."""
    clone, wheels, env = tmp_path / "clone", tmp_path / "wheels", tmp_path / "env"
    every = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(every, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in listed.splitlines():
        if name.split("/")[0] not in ("tests", ".ci") and (ROOT / name).exists():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, clone], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "--python", env, "install", "--quiet", "--no-deps", wheel], check=True)
    libraries = env / "lib" / Path(sysconfig.get_path("purelib")).relative_to(Path(sys.prefix) / "lib")
    (libraries / "base.pth").write_text(sysconfig.get_path("purelib"))

    work = tmp_path / "work"
    work.mkdir()
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def align(*words: str) -> str:
        done = subprocess.run([env / "bin/align", *words], cwd=work, env=own, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for name in ("gfpo_chain_sum", "cpu_zero2"):
        align("recipes", name)
    assert (work / "launch/cpu_zero2.yaml").is_file()
    assert "ok" in align("check", "recipes/gfpo_chain_sum.yaml").splitlines()[-1]
    assert "key=value" in align("train", "--help").replace("KEY=VALUE", "key=value")
