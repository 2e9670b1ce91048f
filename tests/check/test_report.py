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
