import ast
import inspect
import json
import textwrap
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reasoning_gym.factory import DATASETS

from rewards import gym


def columns(rows):
    return {key: [row[key] for row in rows] for key in ("answer", "task", "entry")}


def score(response, answer, task="chain_sum", entry="{}"):
    (value,) = gym.correct([None], [response], [[]], answer=[answer], task=[task], entry=[entry], truncated=[False])
    return value


def responses(rows, change=lambda answer: answer):
    return gym.correct(
        [row["prompt"] for row in rows],
        [[{"role": "assistant", "content": change(row["answer"])}] for row in rows],
        [[1]] * len(rows),
        **columns(rows),
    )


# Prompts


def test_rows_have_distinct_questions_and_all_keys():
    rows = gym.prompts("chain_sum", size=50, seed=1)
    assert len({row["prompt"][0]["content"] for row in rows}) == len(rows) == 50
    row = rows[0]
    assert set(row) == {"prompt", "answer", "task", "entry"}
    assert row["prompt"][0]["role"] == "user"
    entry = json.loads(row["entry"])
    assert entry["question"] == row["prompt"][0]["content"]
    assert entry["answer"] == row["answer"]


def test_rows_depend_on_the_seed_alone():
    assert gym.prompts("chain_sum", size=5, seed=1) == gym.prompts("chain_sum", size=5, seed=1)
    assert gym.prompts("chain_sum", size=5, seed=1) != gym.prompts("chain_sum", size=5, seed=2)


def test_small_task_has_fewer_rows_than_asked():
    one_digit = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    assert len(gym.prompts("chain_sum", size=300, **one_digit)) == 200
    assert len(gym.prompts("chain_sum", size=200, **one_digit)) == 200


def test_task_that_precomputes_its_items():
    questions = {row["prompt"][0]["content"] for row in gym.prompts("gsm_symbolic", size=3)}
    assert len(questions) == 3


def test_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match="'chain_sun'.*chain_sum"):
        gym.prompts("chain_sun")
    with pytest.raises(ValueError, match="'chain_sun'.*chain_sum"):
        score("1", "1", task="chain_sun")


def test_wrong_parameters_are_named_with_the_right_ones():
    with pytest.raises(ValueError, match=r"min_term'; .*parameters are min_terms, max_terms"):
        gym.prompts("chain_sum", min_term=3)
    with pytest.raises(ValueError, match="max_terms must be >= min_terms.*parameters are"):
        gym.prompts("chain_sum", min_terms=9, max_terms=2)
    with pytest.raises(ValueError, match="parameters are"):
        gym.prompts("chain_sum", min_terms="two")


@pytest.mark.parametrize("size", [0, -1])
def test_size_below_one_raises(size):
    with pytest.raises(ValueError, match="size"):
        gym.prompts("chain_sum", size=size)


def test_attribute_is_prompts_of_the_task():
    assert isinstance(gym.chain_sum, partial)
    assert gym.chain_sum(size=3) == gym.prompts("chain_sum", size=3)
    with pytest.raises(AttributeError, match="chain_sum"):
        _ = gym.chain_sun


# Integer answers


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("7", "7"),
        ("The sum is 7.", "7"),
        ("3 + 4 = 7", "7"),
        ("first 12, then 7!", "7"),
        (r"\boxed{-5}", "-5"),
        ("-5", "-5"),
        ("x = -5", "-5"),
        ("**-5**", "-5"),
        ("\N{MINUS SIGN}5", "-5"),
        ("+5", "5"),
        ("3-5", "5"),
        ("(3)-5", "5"),
        ("x-5", "5"),
        ("3 - 5", "5"),
        ("1,000", "1000"),
        ("-12,345,678.", "-12345678"),
        ("1,2,3", "3"),
        ("1, 000", "0"),
        ("007", "7"),
        ("-0", "0"),
        ("5cm", "5"),
        ("$5", "5"),
        ("...5", "5"),
        ("step 7\n", "7"),
        ("12.5", None),
        ("7 or 12.5", None),
        ("7.0", None),
        (".5", None),
        ("1/2", None),
        ("1e5", None),
        ("1.2.3", None),
        ("", None),
        ("seven", None),
        ("x5", None),
        ("٧", None),
        ("７", None),
        ("7²", "7"),
    ],
)
def test_last_integer(response, value):
    assert gym.last_integer(response) == value


@given(st.integers(), st.text(alphabet="abc =\n", max_size=9), st.sampled_from(["", ".", " cm", "!"]))
def test_last_integer_finds_any_integer_at_the_end(number, before, after):
    for written in (str(number), f"{number:,}"):
        assert gym.last_integer(f"{before} 99 {written}{after}") == str(number)


@given(st.text(alphabet="0123456789-+.,/eE_x) \N{MINUS SIGN}", max_size=40))
def test_last_integer_is_canonical_or_none(response):
    value = gym.last_integer(response)
    assert value is None or str(int(value)) == value


def test_integer_answer_takes_the_last_number_only():
    assert score("7 is what I get, no, 8", "7") == 0.0
    assert score("8, no: 7", "7") == 1.0
    assert score("17", "7") == 0.0
    assert score("", "7") == 0.0


def test_huge_integers_are_compared():
    assert score("9" * 100_000, "9" * 100_000) == 1.0
    assert score("9" * 100_000, "7") == 0.0


def test_both_kinds_of_completions():
    rows = gym.prompts("chain_sum", size=4)
    assert responses(rows) == [1.0] * 4
    assert responses(rows, lambda answer: f"{answer}1") == [0.0] * 4
    plain = gym.correct(None, [row["answer"] for row in rows], [[]] * 4, **columns(rows))
    assert plain == [1.0] * 4


# Other answers

SOLVED = [
    "ab", "arc_agi", "decimal_arithmetic", "letter_jumble", "mini_sudoku", "polynomial_equations",
    "power_function", "prime_factorization", "rearc", "syllogism", "time_intervals",
    "tower_of_hanoi", "word_ladder", "zebra_puzzles",
]  # fmt: skip


@pytest.mark.parametrize("task", SOLVED)
def test_gold_answers_score_one_and_others_little(task):
    rows = gym.prompts(task, size=3, seed=5)
    assert responses(rows, lambda answer: f" {answer}\n") == [1.0] * 3
    assert max(responses(rows, lambda answer: "no idea")) <= 0.1


def test_task_without_a_gold_answer_is_scored_by_its_scorer():
    rows = gym.prompts("graph_color", size=2)
    assert columns(rows)["answer"] == ["", ""]
    solution = json.loads(rows[0]["entry"])["metadata"]["possible_answer"]
    assert score(json.dumps(solution), "", "graph_color", rows[0]["entry"]) == 1.0
    assert score("", "", "graph_color", rows[0]["entry"]) == 0.0


def test_scorer_has_the_parameters_of_the_prompts():
    # The tolerance is one unit of the last of max_num_decimal_places.
    def off_by_a_hundredth(places):
        rows = gym.prompts("decimal_arithmetic", size=20, min_num_decimal_places=1, max_num_decimal_places=places)
        row = next(row for row in rows if "." in row["answer"])
        return score(str(float(row["answer"]) + 0.01), "x", "decimal_arithmetic", row["entry"])

    assert off_by_a_hundredth(1) == 1.0
    assert off_by_a_hundredth(6) == 0.0


@pytest.mark.parametrize(
    ("task", "response"),
    [
        ("prime_factorization", "two times three"),
        ("prime_factorization", "9" * 5000 + " × 2"),
        ("time_intervals", "9" * 400 + ":00"),
        ("boxnet", "5"),
        ("boxnet", '[{"a": "move(b, c)"}]'),
        ("game_of_life", '{"a": 1}'),
        ("game_of_life", "[" * 100_000),
    ],
)
def test_answer_that_the_scorer_cannot_read_is_wrong(task, response):
    row = next(r for r in gym.prompts(task, size=20) if not r["answer"].isdigit())
    assert score(response, row["answer"], task, row["entry"]) == 0.0


def test_broken_entry_raises():
    with pytest.raises(ValueError):
        score("x", "x", "ab", "no json")


# Refused tasks


@pytest.mark.parametrize("task", gym.REFUSED)
def test_refused_tasks(task):
    with pytest.raises(ValueError, match=f"'{task}' is refused: it"):
        gym.prompts(task, size=1)
    with pytest.raises(ValueError, match="refused"):
        score("1", "(1 + 2)", task)
    assert score("so 24", "24", task) == 1.0


def test_refused_names_every_scorer_that_evaluates():
    # What the library's own text shows, so that an upgrade which adds one is noticed.
    def calls(task):
        source = textwrap.dedent(inspect.getsource(DATASETS[task][0].score_answer))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call):
                called = node.func
                name = getattr(called, "id", getattr(called, "attr", None))
                of_answer = "answer" in {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                if name in ("eval", "exec", "parse_expr", "sympify") and of_answer:
                    yield name

    evaluating = {task for task in DATASETS if set(calls(task))}
    assert evaluating == {
        "binary_matrix", "countdown", "intermediate_integration", "n_queens",
        "polynomial_multiplication", "puzzle24", "simple_integration", "spiral_matrix",
        "string_insertion",
    }  # fmt: skip
    assert evaluating <= set(gym.REFUSED)


def test_no_response_is_evaluated(tmp_path):
    target = tmp_path / "evaluated"
    attack = f'__import__("pathlib").Path("{target}").touch()'
    for task in ("chain_sum", *SOLVED):
        responses(gym.prompts(task, size=1), lambda answer: attack)
    assert not target.exists()
