"""What the check shows."""

from support.broken import corpus


def test_a_problem_shows_no_secret(bench):
    bench.reward(corpus.TELLS, args={"api_key": "SUPERSECRETVALUE99"})
    (told,) = bench.checked()["problems"]
    assert "401 with key [redacted]" in told and "SUPERSECRET" not in told
