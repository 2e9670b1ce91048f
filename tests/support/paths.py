"""Where the checkout and the files of the tests are."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
PROGRAMS = TESTS / "integration/programs"  # of the engine tests
TRACES = TESTS / "support/traces"  # recorded healthy runs: {metric: value of each step, null for none}
PYTHONPATH = f"{ROOT}:{TESTS}"  # for processes that import `align`, `rewards` and `support`
