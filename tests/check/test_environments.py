"""Environments are tried before a run: on rows of the data, with replies that no model wrote."""

import pytest

GUESS = {"name": "support.environments:Guess", "max_turns": 3}


@pytest.fixture
def play(bench):
    """Makes the bench's recipe one of episodes, and checks it."""

    def checked(environment, rewards=None, data=None, **sampling):
        bench.put("environment", environment)
        bench.put("rewards", rewards or {})
        bench.put(
            "data", {"episodes": 8, "holdout": 2, "prompts_per_step": 2, "max_prompt_tokens": 100, **(data or {})}
        )
        bench.put("sampling", {"group_size": 2, "max_response_tokens": 100, "engine": "transformers", **sampling})
        return bench.checked()["problems"]

    return checked


def test_a_healthy_one_is_no_problem_and_its_reward_is_told(play, bench):
    assert play(GUESS) == []
    assert bench.checked()["facts"]["rewards"]["Guess"]["scripted replies"] <= 1.0


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"name": "support.environments:Gues"}, r"environment.name: .*no attribute 'Gues'.*Guess"),
        ({"name": "no_such_module:Guess"}, r"environment.name: .*no_such_module"),
        ({"name": "support.environments:NUMBER"}, r"neither a class nor a function"),
        ({**GUESS, "args": {"hihg": 3}}, r"environment.name: .*unexpected keyword argument 'hihg'"),
        ({**GUESS, "args": {"build": "os._exit"}}, r"environment.name: .*cannot be used"),
        ({"name": "support.environments:NoReset"}, r"has no method reset"),
        ({"name": "support.environments:Returns"}, r"step, on the reply .The answer is 42.., failed on the row"),
        ({"name": "support.environments:Random"}, r"reset says something else at the same seed.*`random`"),
        (
            {"name": "support.environments:Breaks"},
            r"reset failed on the row .*ValueError: broken \(.*environments.py:\d+",
        ),
        (
            {"name": "support.environments:Long"},
            r"the prompt has \d+ tokens, and data.max_prompt_tokens is 100; raise it",
        ),
        ({"name": "support.environments:Talks"}, r"max_response_tokens: 100 tokens hold one turn .* no second turn"),
        ({**GUESS, "max_turns": 0}, r"environment.max_turns"),
        ({**GUESS, "max_turn": 3}, r"environment.max_turn: unknown key.*max_turns"),
    ],
)
def test_what_would_fail_is_found_with_its_place(play, environment, problem):
    problems = play(environment)
    assert problems and __import__("re").search(problem, problems[0]), problems
    assert all(text.startswith("recipe.yaml:") or "recipe.yaml" in text for text in problems)


def test_hostile_text_that_breaks_a_step_is_a_doubt_of_single_rows(play):
    (problem,) = play({"name": "support.environments:Fragile"})
    assert "step, on the reply" in problem and "IndexError" in problem


def test_a_budget_without_room_for_a_turn(play):
    (problem,) = play(GUESS, max_turn_tokens=101)
    assert "sampling.max_turn_tokens: an episode has 100 tokens" in problem


def test_rows_that_choose_no_environment(play, bench):
    bench.rows(
        [{"prompt": "x", "environment": "a"}, {"prompt": "y", "environment": "c"}, {"prompt": "z"}], "rows.jsonl"
    )
    problems = play(
        {"a": GUESS, "b": GUESS}, data={"episodes": None, "holdout": 0, "prompts": "rows.jsonl", "prompts_per_step": 1}
    )
    assert any("2 of 3 rows choose none of them by their column 'environment', the first by 'c'" in p for p in problems)


@pytest.mark.parametrize(
    ("environment", "data", "problem"),
    [
        (None, {}, "data.episodes: needs an environment"),
        ({"a": GUESS}, {}, "data.episodes: have no column `environment`"),
        (GUESS, {"prompts": "prompts.jsonl"}, "write one of prompts, pairs and episodes"),
    ],
)
def test_keys_that_do_not_go_together(play, environment, data, problem):
    assert any(problem in text for text in play(environment, data=data))


def test_a_reward_is_tried_with_the_environment_that_was_tried(play):
    assert play(GUESS, rewards={"support.environments:reads_environment": 1.0}) == []
    (problem,) = play(GUESS, rewards={"support.environments:takes_no_environments": 1.0})
    assert "is called with 'environments', which it does not take; add **columns to it" in problem
