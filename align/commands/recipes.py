"""`align recipes`: the recipes and launch files that come with the package, and copies of them to change."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

from align.config.recipe_file import ConfigError, read

FOLDERS = ("recipes", "launch")


def shipped() -> dict[str, Path]:
    """Return {where it stands in a clone, such as recipes/dpo_reviews.yaml: the file here}, of a clone or as
    installed."""
    clone = Path(__file__).parents[2]
    files = [path for folder in FOLDERS for path in (clone / folder).glob("*.yaml")]
    if not files:  # of a wheel, whose data files pip puts beside the packages
        listed = metadata.files("align") or ()
        files = [Path(file.locate()) for file in listed if file.suffix == ".yaml" and file.parent.name in FOLDERS]
    return {f"{path.parent.name}/{path.name}": path.resolve() for path in sorted(files)}


def first_comment(path: Path) -> str:
    """Return what the first line of a YAML file says of it."""
    with path.open(encoding="utf-8") as lines:
        return lines.readline().removeprefix("#").strip()


def find(name: str, files: dict[str, Path]) -> str:
    """Return the key of a file by its name: gfpo_chain_sum, launch/cpu_zero2.yaml. Raises `ConfigError`."""
    from align.config.problems import nearest

    stems = {Path(key).stem: key for key in files}
    wanted = name if name in files else stems.get(Path(name).stem)
    if wanted is None:
        raise ConfigError([f"no recipe or launch file {name!r}; {nearest(name, stems)}"])
    return wanted


def copy(name: str, into: Path) -> list[Path]:
    """Copy a recipe or launch file under a folder, with the recipes that make its models; the files that are new.

    A file that is there stays as it is. Raises `ConfigError` where the named one is there already, or unknown.
    """
    files, out = shipped(), []
    wanted = [find(name, files)]
    if (into / wanted[0]).exists():
        raise ConfigError([f"{into / wanted[0]} is there already; move it away first"])
    while wanted:
        key = wanted.pop()
        if not (into / key).exists():
            try:
                (into / key).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(files[key], into / key)
            except OSError as error:
                raise ConfigError([f"{into / key} cannot be written: {error.strerror}; name another --into"]) from error
            out.append(into / key)
        wanted += [stage for stage in stages(files[key]) if stage in files]
    return out


def stages(path: Path) -> list[str]:
    """Return the recipes that a recipe's models come from."""
    model = read(path).data.get("model", {})
    return [value["from"] for value in model.values() if isinstance(value, dict) and "from" in value]
