"""Made-up runs, and a browser for the tests that look at their pages."""

import json
from functools import cache

import pytest
import yaml
from support import browser, run_folder

from align.commands.credit import credit
from align.xray.page import write
from align.xray.read import look


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """{name: (folder, experiment)}: one objective with a chain, several over one batch, pairs."""
    folder = tmp_path_factory.mktemp("runs")
    made = {
        "composed": run_folder.make(folder / "composed", unrated=(3, 9)),
        "several": run_folder.make(folder / "several", overrides=run_folder.SEVERAL),
        "tgdpo": run_folder.make(folder / "tgdpo", run_folder.TGDPO),
    }
    return {name: (folder / name, experiment) for name, experiment in made.items()}


@pytest.fixture
def with_tools(tmp_path):
    """(folder, experiment, mask) of a run of which the best response of the first group has turns and a tool's tokens:
    5 of 12, whose log-probabilities are -999."""
    experiment = run_folder.make(tmp_path / "tools", steps=1)
    record, mask = tmp_path / "tools" / "samples.jsonl", [True] * 4 + [False] * 3 + [True] * 3 + [False] * 2
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    row = max((line for line in lines if line["group"] == "1-0"), key=lambda line: line["reward"])
    stretch(row, len(row["response_ids"]), len(mask))
    row["sampler_logprob"] = [v if own else -999.0 for v, own in zip(row["sampler_logprob"], mask, strict=True)]
    row["turns"] = [
        {"role": "assistant", "text": "a", "start": 0, "end": 4, "reward": None},
        {"role": "tool", "text": "b", "start": 4, "end": 7, "reward": 0.5},
        {"role": "assistant", "text": "c", "start": 7, "end": 10, "reward": None},
        {"role": "<b>", "text": "d", "start": 10, "end": 12, "reward": None},
    ]
    record.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return record.parent, experiment, mask


def stretch(value, old, new):
    """Repeat the last of each list of `old` values, so that it has `new`."""
    for at, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, list) and len(inner) == old and not isinstance(inner[0], list | dict):
            value[at] = (inner + [inner[-1]] * new)[:new]
        elif isinstance(inner, list | dict):
            stretch(inner, old, new)


@pytest.fixture(scope="session")
def every(tmp_path_factory):
    """A function: (what there is to see, the lines of `align credit`) of a made-up run of a named objective, as the
    page of methods has it."""
    methods = yaml.safe_load((run_folder.ROOT / "tests/support/methods.yaml").read_text())

    @cache
    def run(name):
        folder = tmp_path_factory.mktemp(name)
        section = yaml.safe_load(methods[name]["yaml"])["objective"]
        experiment = run_folder.make(folder, overrides=[f"objective={json.dumps(section)}"])
        return look(folder, own=experiment), credit(experiment, folder / "samples.jsonl")

    return run


@pytest.fixture(scope="session")
def tab(tmp_path_factory):
    """One browser for all tests: each opens its own page in it."""
    if browser.CHROMIUM is None:
        pytest.skip(browser.MISSING)
    with browser.chromium(tmp_path_factory.mktemp("chromium") / "profile") as opened:
        yield opened


@pytest.fixture
def shown(tab, tmp_path):
    """A function that opens the page of a look in the browser, checks that it is quiet, and gives the tab."""
    pages = []

    def show(found):
        tab.problems.clear()
        tab.requests.clear()
        pages.append(tmp_path / f"page{len(pages)}.html")
        write(found, pages[-1])
        tab.open(pages[-1])
        return tab

    yield show
    assert tab.problems == []
    assert set(tab.requests) <= {page.resolve().as_uri() for page in pages}


@pytest.fixture
def seen(runs):
    """A function: what there is to see of a made-up run, by name."""
    return lambda name, **rest: look(runs[name][0], own=runs[name][1], **rest)
