"""What the check shows."""

from support.broken import corpus
from support.hostile_text import acting

from align.check.report import show


def test_a_problem_shows_no_secret(bench):
    bench.reward(corpus.TELLS, args={"api_key": "SUPERSECRETVALUE99"})
    (told,) = bench.checked()["problems"]
    assert "401 with key [redacted]" in told and "SUPERSECRET" not in told


def test_facts_are_shown_in_words(bench, capsys, monkeypatch):
    """An objective that asks no model for anything is shown as such; the facts themselves stay data."""
    monkeypatch.setenv("COLUMNS", "200")
    result = bench.checked()
    assert result["facts"]["objectives"] == ["gfpo"] and result["facts"]["passes"] == {"gfpo": {}}
    show(result)
    bench.learns_from_pairs()
    result = bench.checked()
    assert result["facts"]["context"]["needed"] is None
    show(result)
    said = capsys.readouterr().out
    shown = [line.split(maxsplit=1) for line in said.splitlines()]
    for line in (["passes.gfpo", "none"], ["objectives", "gfpo"], ["passes.dpo", "reference ref_logprob"]):
        assert line in [[part.strip() for part in found] for found in shown], (line, said)
    assert not {"[", "]", "None", "{", "True"} & set("".join(said).replace("[", " [ ").replace("]", " ] ").split())


def test_what_a_reward_says_of_the_machine_is_a_note(bench, capsys):
    bench.reward("support.reward_functions:noted")
    result = bench.checked()
    told = [note for note in result["notes"] if note.startswith("reward 'noted': ")]
    assert told[0] == "reward 'noted': no limit of \x1b[31mthis" and len(told) == 2 and len(told[1]) < 1000
    show(result)
    shown = capsys.readouterr().out
    assert "note: reward 'noted': no limit of \\x1b[31mthis" in shown and not acting(shown)


def test_memory_is_a_table_by_phase_and_each_choice_a_line(bench, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = checked_for_gpus(bench)
    show(result)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["sampling", "update", "sync"] in lines
    [total] = [line[1:] for line in lines if line[:1] == ["total"]]
    assert total == [f"{result['facts']['memory_gib'][phase]['total']:.2f}" for phase in ("sampling", "update", "sync")]
    assert "not measured on any GPU" in " ".join(sum(lines, []))
    for key, choice in result["facts"]["chosen"].items():
        [line] = [line for line in lines if line[0] == key]
        assert " ".join(line).endswith(choice["why"])


def test_it_says_where_the_memory_of_the_gpus_is_known_from(bench):
    result = checked_for_gpus(bench)
    assert result["facts"]["launch"]["on"] == "a GPU of 80 GiB (assumed; --gpu-gib says otherwise)"
    assert any("is for GPUs, and this machine has none" in note for note in result["notes"])


def test_a_recipe_that_does_not_fit_is_a_problem_with_the_keys_that_make_it_fit(bench):
    bench.put("sampling.cache_gib", 200)
    result = checked_for_gpus(bench)
    [told] = result["problems"]
    assert not result["ok"] and "launch.yaml: 4 processes, ZeRO-2: the sampling takes about 20" in told
    assert "it would fit with sampling.cache_gib: 7" in told
    bench.put("sampling.cache_gib", float(told.split("sampling.cache_gib: ")[1].split()[0]))
    assert checked_for_gpus(bench)["ok"]


def test_more_processes_than_gpus_are_a_note(bench, monkeypatch):
    monkeypatch.setattr("align.check.summary.gpus", lambda: 2)
    assert any(
        "num_processes: 4 processes a machine, and this one has 2 GPUs" in n for n in checked_for_gpus(bench)["notes"]
    )
    monkeypatch.setattr("align.check.summary.gpus", lambda: 4)
    assert not any("num_processes" in note for note in checked_for_gpus(bench)["notes"])


def checked_for_gpus(bench):
    bench.launch = {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"zero_stage": 2},
        "num_processes": 4,
        "use_cpu": False,
    }
    return bench.checked()
