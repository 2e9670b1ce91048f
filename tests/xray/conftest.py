"""Made-up runs, and a browser for the tests that look at their pages."""

import pytest
from support import browser, run_folder

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
