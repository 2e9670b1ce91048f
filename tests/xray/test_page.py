"""The page in a real Chromium: quiet, alone, and with the numbers of `align credit`."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from support import run_folder
from support.hostile_text import ESCAPES, MARKUP, acting

from align.commands.credit import credit
from align.config.experiment import load_experiment
from align.config.rules import REPLAY
from align.registry import OBJECTIVES
from align.result.samples import RecordedRollout
from align.xray.against import agreement
from align.xray.credits import CARRIES, NO_PART, Credits
from align.xray.data import Look, Seen, page
from align.xray.page import html
from align.xray.read import look

KTAE = run_folder.ROOT / "recipes/ktae_chain_sum.yaml"


def entries(line):
    return line.get("objectives", [line])


@pytest.mark.parametrize("name", ["composed", "several", "tgdpo"])
def test_a_click_on_each_bar_frames_as_many_tokens_as_credit_counts(shown, seen, runs, name):
    folder, experiment = runs[name]
    lines = credit(load_experiment(folder / "config.yaml", (), REPLAY), folder / "samples.jsonl")
    rows = [line for line in lines if "group" in line]
    summary = [line for line in lines if "group" not in line][-1]  # of the last step, which is shown first
    theirs = [entries(row) for row in rows[len(rows) // 2 :]]
    tab = shown(seen(name))
    for number, entry in enumerate(entries(summary)):
        tab.does(f"set({{objective: {number}, hit: null}})")
        signal = entry["signal"]
        places = {piece: place for place, piece in enumerate(signal["taken"])} | {"carrying": CARRIES}
        for piece, count in {**signal["taken"], "carrying": signal["carrying"]}.items():
            tab.does(f"document.querySelector('.bar[data-place=\"{places[piece]}\"]').click()")
            assert tab.js("document.querySelectorAll('.t.hit').length") == count, piece
        tab.key("Escape")
        assert tab.js("document.querySelectorAll('.t.hit').length") == 0
        for fact, key in (("Σ credit", "advantage"), ("Σ weight", "weight")):
            total = sum(value for row in theirs for value in row[number][key])
            assert float(tab.js(f"document.querySelector('[data-fact=\"{fact}\"]').dataset.value")) == pytest.approx(
                total, rel=1e-9, abs=1e-9
            )
        assert float(tab.js("document.querySelector('[data-fact=loss]').dataset.value")) == entry["loss"]


def test_every_objective_has_the_sums_of_align_credit_in_the_browser(shown, every):
    """All of them on one page, the first step of each as a source of its own."""
    batches, summaries, sums = [], [], []
    for name in OBJECTIVES:
        found, lines = every(name)
        seen, rows = found.batches[0], [line for line in lines if "group" in line]
        rollouts = {place: row.model_copy(update={"source": name}) for place, row in seen.rollouts.items()}
        batches.append(replace(seen, rollouts=rollouts))
        summaries.append(next(line for line in lines if "group" not in line))
        sums.append({k: sum(v for row in rows[: len(rollouts)] for v in row[k]) for k in ("advantage", "weight")})
    tab = shown(Look("every objective", batches))
    for number, (name, summary) in enumerate(zip(OBJECTIVES, summaries, strict=True)):
        tab.does(f"set({{objective: {number}}})")
        signal = summary["signal"]
        bars = dict(tab.js("[...document.querySelectorAll('.bar')].map((e) => [e.dataset.place, e.dataset.count])"))
        expected = {"all": signal["generated"], str(CARRIES): signal["carrying"]}
        expected |= {str(place): count for place, count in enumerate(signal["taken"].values())}
        assert {place: int(count) for place, count in bars.items()} == expected, name
        tab.does(f"document.querySelector('.bar[data-place=\"{CARRIES}\"]').click()")
        assert tab.js("document.querySelectorAll('.t.hit').length") == signal["carrying"], name
        for fact, key in (("Σ credit", "advantage"), ("Σ weight", "weight")):
            got = float(tab.js(f"document.querySelector('[data-fact=\"{fact}\"]').dataset.value"))
            assert got == pytest.approx(sums[number][key], rel=1e-9, abs=1e-9), name


def test_keys_move(shown, seen):
    tab = shown(seen("several"))
    state = lambda key: tab.js(f"state.{key}")  # noqa: E731
    assert (state("batch"), state("objective"), state("stream")) == (1, 0, "credit")
    tab.key("ArrowLeft")
    assert state("batch") == 0
    group = state("group")
    tab.key("n")
    assert state("group") != group
    tab.key("p")
    assert state("group") == group
    tab.key("s")
    assert state("stream") == "credit × weight"
    tab.key("j")
    assert state("token") is not None and "carries gradient" in tab.js("document.getElementById('token').textContent")
    tab.key("Escape")
    assert state("token") is None
    tab.key("o")
    assert state("objective") == 1
    tab.key("2")
    assert state("view") == "distribution" and tab.js("document.querySelectorAll('figure svg').length") == 2


def test_every_view_draws_in_light_and_dark(shown, seen, runs):
    other = load_experiment(KTAE, (), REPLAY)
    for name, against, views in (
        ("several", other, {"tokens", "distribution", "heldOut", "against", "run"}),
        ("tgdpo", None, {"tokens", "distribution", "heldOut", "pairs", "run"}),
    ):
        tab = shown(seen(name, against=against))
        assert set(tab.js("available()")) == views
        papers = set()
        for view in views:
            tab.does(f"set({{view: '{view}', token: 0}})")
            assert tab.js("document.getElementById('main').textContent.length") > 40
            tab.js("theme()")
            papers.add(tab.js("getComputedStyle(document.body).backgroundColor"))
        assert len(papers) == 2


def test_the_numbers_of_two_recipes_are_those_of_python(shown, seen):
    found = seen("several", against=load_experiment(KTAE, (), REPLAY))
    tab, batch, flips = shown(found), found.batches[-1], 0
    tab.key("4")
    starts = np.cumsum([0, *(len(row.response_ids) for b in found.batches for row in b.rollouts.values())])
    first = len(found.batches[0].rollouts)
    for other, credits in ((1, batch.credits[1]), (2, batch.against[0])):
        tab.does(f"set({{other: {other}}})")
        got = json.loads(tab.js("document.querySelector('[data-numbers]').dataset.numbers"))
        expected = agreement(batch.credits[0], credits)
        flips += expected.flips
        assert (got["flips"], got["both"], got["either"]) == (expected.flips, expected.both, expected.either)
        assert got["overlap"] == pytest.approx(expected.overlap) and 0 < expected.overlap < 1
        assert got["cosine"] == pytest.approx(expected.cosine) and 0 < abs(expected.cosine) < 1
        assert got["effective"] == pytest.approx(expected.effective)
        assert got["differ"] == [int(starts[first + row]) + t for row, t in expected.differ]
        assert f"{expected.flips:,}" == tab.js("document.querySelector('[data-ab=flips]').textContent")
    assert flips > 0


def made(texts, rewards=("r",), name="mine", prompt="p", credit=None):
    """What there is to see of one group of one response, of tokens with these texts."""
    n = len(texts)
    fields = {"response_ids": list(range(n)), "token_text": list(texts), "reward": 1.0, "prompt": prompt}
    row = RecordedRollout(
        group="g", rewards=dict.fromkeys(rewards, 0.5), failed=dict.fromkeys(rewards, prompt), **fields
    )
    values = np.arange(n, dtype=float) if credit is None else np.asarray(credit, float)
    credits = Credits(name, (name,), [True], [np.full(n, CARRIES)], {}, [values], [np.ones(n)])
    greedy = [{"step": 0, "prompt": prompt, "response": prompt, "reward": None}]
    return Look(name, [Seen({"x:1": row}, [credits])], [{"step": 0, name: 1.0}], greedy, [prompt])


def test_a_held_out_prompt_is_found_by_what_it_has_of_its_own_and_by_its_reward(shown):
    """The first that changed is shown first; what does not matter for a view cannot be chosen in it."""
    asked = [("What is 1 + 1?", 1.0, 1.0), ("What is 2 + 2?", 0.0, 1.0), ("What is 3 + 3?", 0.0, None)]
    lines = [
        {"step": step, "prompt": prompt, "response": f"after {step}", "reward": rewards[step]}
        for step in (0, 1)
        for prompt, *rewards in asked
    ]
    tab = shown(replace(made("ab"), greedy=lines))
    chosen = "[...document.querySelectorAll('#bar select')].map((e) => e.id)"
    assert tab.js(chosen) == ["step", "group", "stream"]
    tab.does("set({view: 'heldOut'})")
    assert tab.js(chosen) == []
    options = tab.js("[...document.querySelectorAll('#prompt option')].map((e) => e.textContent)")
    rewards = ["1 + 1? · reward 1 → 1", "2 + 2? · reward 0 → 1", "3 + 3? · reward 0 → none"]
    assert options == [f"{number}. … {told}" for number, told in enumerate(rewards, 1)]
    assert tab.js("document.querySelector('.prompt').textContent") == "What is 2 + 2?"
    tab.key("n")
    assert tab.js("document.querySelector('.prompt').textContent") == "What is 3 + 3?"


@pytest.mark.parametrize(
    "text", [*ESCAPES.values(), *MARKUP.values(), "</script><script>document.title='owned'</script>"]
)
def test_hostile_text_is_shown_and_does_nothing(shown, text):
    found = made([text, text], rewards=[text], name=text, prompt=text)
    assert html(page(found)).count("<script") == html(page(made("ab"))).count("<script")
    tab = shown(found)
    before = tab.js("document.querySelectorAll('script, img, a, iframe').length")
    for view in ("tokens", "heldOut", "run"):
        tab.does(f"set({{view: '{view}', token: 0}})")
        assert not acting(tab.js("document.body.innerText"))
    assert tab.js("document.querySelectorAll('script, img, a, iframe').length") == before
    assert tab.js("document.title") != "owned"


@pytest.mark.parametrize(
    "directive, script",
    [
        ("connect-src", "fetch('https://align.invalid/').catch(() => 0)"),
        ("img-src", "new Image().src = 'https://align.invalid/'"),
        ("script-src-elem", "document.body.append(h('script', {src: 'https://align.invalid/'}))"),
        ("script-src-elem", "document.body.append(h('script', {}, 'document.title = 1'))"),
        ("style-src-elem", "document.body.append(h('style', {}, '@import url(https://align.invalid/)'))"),
    ],
)
def test_nobody_can_be_called_even_by_a_script_that_got_in(shown, directive, script):
    tab = shown(made("ab"))
    event = "new Promise((done) => document.addEventListener('securitypolicyviolation', done, { once: true }))"
    refused = f"(async () => {{ const refused = {event}; {script}; return (await refused).effectiveDirective; }})()"
    assert tab.js(refused) == directive
    for told in (tab.problems, tab.requests):  # the browser says what it refused
        told.clear()


def test_a_megabyte_of_one_token_is_cut_and_said(shown):
    tab = shown(made(["x" * 2**20, "ok"], prompt="y" * 2**20))
    assert "more characters" in tab.js("document.querySelector('.t[data-i]').textContent")
    assert tab.js("document.body.innerText.length") < 50_000


def test_what_is_missing_is_not_zero_and_one_wild_value_flattens_nothing(shown):
    tab = shown(made(list("abcdef"), credit=[math.nan, 0.0, 0.5, -0.5, 1.0, -30.0]))
    looks = tab.js("[...document.querySelectorAll('.tokens .t')].map((e) => e.className)")
    assert "missing" in looks[0] and "zero" in looks[1] and "missing" not in looks[1]
    assert looks[4].split()[1:3] == ["up", "l8"] and "over" in looks[5]


def test_turns_fold_and_what_the_policy_did_not_write_is_hatched_and_in_no_count(shown, with_tools):
    """Of 12 tokens 5 were put in, among them the last 2; their streams are wild, to show in any sum."""
    folder, experiment, mask = with_tools
    found = look(folder, own=experiment)
    tab, credits = shown(found), found.batches[0].credits[0]
    tab.does("set({group: '1-0'})")
    row = "document.querySelector('article.row')"
    assert tab.js(f"[...{row}.querySelectorAll('.t')].map((e) => !e.classList.contains('env'))") == mask
    theirs = tab.js(f"[...{row}.querySelectorAll('.env.t')].map((e) => e.className)")
    assert all("missing" in name and "taken" not in name for name in theirs)
    heads = tab.js(f"[...{row}.querySelectorAll('summary')].map((e) => e.textContent)")
    said = ["assistant · 4 tokens", "tool · 3 tokens · reward 0.5", "assistant · 3 tokens", "<b> · 2 tokens"]
    assert heads == [f"turn {number} · {what}" for number, what in enumerate(said, 1)]
    assert tab.js(f"[...{row}.querySelectorAll('details')].map((e) => e.open)") == [True, False, True, False]
    assert "12 tokens, 5 not the policy's" in tab.js(f"{row}.querySelector('h3').textContent")
    generated = dict(credits.waterfall())["generated"]
    assert generated == sum(sum(r.mask) for r in found.batches[0].rollouts.values())
    assert f"{generated:,}" == tab.js("document.querySelector('.bar.generated .count').textContent")
    carrying = dict(credits.waterfall())["carrying gradient"]
    assert f"{carrying:,}" == tab.js("document.querySelector('.bar.carrying .count').textContent")
    total = sum(np.nansum(values) for values in credits.credit)
    assert float(tab.js("document.querySelector('[data-fact=\"Σ credit\"]').dataset.value")) == pytest.approx(total)
    tab.js(f"{row}.querySelectorAll('details')[1].open = true")
    tab.does(f"{row}.querySelector('.env.t').click()")
    assert "An environment or a tool put it in" in tab.js("document.getElementById('token').textContent")
    assert tab.js(f"{row}.querySelectorAll('details')[1].open")  # as a person left it
    tab.does("set({view: 'distribution', stream: 'sampler_logprob', token: null})")
    told = tab.js("document.getElementById('main').textContent")
    assert f"sampler_logprob of {generated:,} tokens" in told and "5 tokens were put in" in told
    assert "999" not in told


def test_pairs_are_called_pairs_and_a_view_that_is_missing_says_why(shown, seen):
    tab = shown(seen("tgdpo"))
    assert tab.js("document.querySelector('.bar .name').textContent") == "in the pairs"
    assert tab.js("document.querySelector('.group h2').textContent").startswith("Pair ")
    assert tab.js("[...document.querySelectorAll('#bar select')].map((e) => e.id)") == ["step", "pair", "stream"]
    assert "count 4 (pair)" in tab.js("document.querySelector('.facts').textContent")
    missing = dict(tab.js("[...document.querySelectorAll('#views :disabled')].map((e) => [e.textContent, e.title])"))
    assert set(missing) == {"A/B"} and "--against RECIPE" in missing["A/B"]


def test_a_page_without_tokens_has_the_run(shown):
    tab = shown(Look("mine", [], [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}], [], ["nothing recorded"]))
    assert tab.js("available()") == ["run"] and "nothing recorded" in tab.js("document.body.innerText")


def test_a_response_without_reward_takes_no_part(seen):
    found = seen("composed")
    row, rollout = next((i, r) for i, r in enumerate(found.batches[0].rollouts.values()) if r.reward is None)
    assert (found.batches[0].credits[0].taken_by[row] == NO_PART).all() and rollout.response_ids
