"""Where a run goes on: the newest intact checkpoint, its lineage, the versions then and now."""

from pathlib import Path

import pytest
from support.checkpoints import find, saved

from align.checkpoint import resume
from align.checkpoint.checkpoint import CheckpointError


def flip(path: Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", ["engine/weights", "state.json", "SHA256SUMS"])
def test_the_newest_intact_checkpoint_is_used(harm, name, tmp_path):
    older, newer = saved(tmp_path, 9, 10)  # by number, not by name
    assert find(tmp_path).checkpoint == newer
    harm(newer / name)
    found = find(tmp_path)
    assert found.checkpoint == older and found.step == 9
    (passed_over,) = found.passed_over
    assert passed_over.startswith(f"{newer}: ")
    assert name in passed_over or name == "SHA256SUMS"  # which may be wrong about any file
    with pytest.raises(CheckpointError, match="step_10: "):
        find(newer)
    harm(older / name)
    with pytest.raises(CheckpointError, match="no checkpoint is intact"):
        find(tmp_path)


def test_a_run_does_not_go_on_from_behind_its_end(tmp_path):
    saved(tmp_path, 10)
    with pytest.raises(CheckpointError, match="10 steps and run.steps is 9"):
        find(tmp_path, steps=9)


def test_where_there_is_nothing_to_go_on_from(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find(tmp_path)
    assert find(tmp_path, out=tmp_path) == resume.Origin(in_place=True)  # killed before its first checkpoint


def test_a_run_that_went_on_elsewhere_and_was_killed_at_once_goes_on_from_the_same(tmp_path):
    (origin,) = saved(tmp_path / "one", 3)
    (tmp_path / "two").mkdir()
    (tmp_path / "two/config.yaml").write_text(f"run: {{resume: {origin}}}")
    found = find(tmp_path / "two", out=tmp_path / "two")
    assert found.checkpoint == origin and found.in_place
    assert not find(tmp_path / "one", out=tmp_path / "two").in_place


def test_lineage_tells_recipes_apart_and_not_how_a_run_is_watched():
    def lineage(origin=(), step=0, processes=1, torch="2", **changed):
        recipe = {"optim": {"lr": 1}, "eval": {"samples": 1}, "run": {"seed": 0, "steps": 4}} | changed
        return resume.lineage(resume.Origin(step=step, lineage=origin), recipe, {"torch": torch}, processes)

    start = lineage()
    assert start == lineage(eval={"samples": 9}, hub="a/b", run={"seed": 0, "steps": 9, "out": "there"})
    assert lineage(tuple(start), 4) == start
    for changed in ({"optim": {"lr": 2}}, {"run": {"seed": 1}}, {"processes": 2}, {"torch": "3"}):
        assert lineage(**changed) != start
        (first, second) = lineage(tuple(start), 4, **changed)
        assert first == start[0] and second[0] == 4


def test_a_resume_tells_which_versions_differ(tmp_path):
    (folder,) = saved(tmp_path, 2)
    (tmp_path / "versions.json").write_text('{"torch": "1", "peft": "3"}')
    origin = find(tmp_path, out=tmp_path)
    text = resume.explain(origin, tmp_path, 5, resume.versions_then(origin, tmp_path), {"torch": "2", "peft": "3"})
    assert f"{folder}: 2 steps done, 5 rollouts" in text
    assert "torch was 1, is 2" in text and "peft" not in text


@pytest.mark.parametrize("text", ["", "{", "[1]", "\0"])
def test_versions_that_cannot_be_read_are_told(tmp_path, text):
    saved(tmp_path, 2)
    (tmp_path / "versions.json").write_text(text)
    origin = find(tmp_path, out=tmp_path)
    then = resume.versions_then(origin, tmp_path)
    assert then == {} and "its versions are not known" in resume.explain(origin, tmp_path, 0, then, {"torch": "2"})


def test_only_the_run_s_own_checkpoints_are_gone_on_from_in_place(tmp_path, monkeypatch):
    (own,) = saved(tmp_path / "run", 2)
    saved(tmp_path / "run/other", 2)
    assert find(own, out=tmp_path / "run").in_place and find(tmp_path / "run", out=tmp_path / "run").in_place
    for inside in ("other", "other/checkpoints/step_2"):
        with pytest.raises(CheckpointError, match="is inside run.out"):
            find(tmp_path / "run" / inside, out=tmp_path / "run")
    monkeypatch.chdir(own.parent)
    assert find("step_2", out="..").in_place and find("step_2", out="..").folder == own.parents[1]


@pytest.mark.parametrize("text", ["", "model: {}", "{"])
def test_a_broken_config_is_named_where_it_is_all_there_is(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"run\.resume: .*config\.yaml"):
        find(tmp_path, out=tmp_path)
    saved(tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"run\.resume: .*config\.yaml"):
        find(tmp_path, out=tmp_path)


@pytest.mark.parametrize("resume_of", ["5", "[a]", "2020-01-01"])
def test_a_config_that_was_edited_into_no_folder_is_named(tmp_path, resume_of):
    (tmp_path / "config.yaml").write_text(f"model: {{}}\nrun: {{resume: {resume_of}}}")
    with pytest.raises(CheckpointError, match=r"config\.yaml: run\.resume is .* and no folder; mend it"):
        find(tmp_path, out=tmp_path)
