"""The random numbers of sampling."""

from align.rollout.seeds import Draw, seed_of


def test_a_prompt_has_the_same_seed_whichever_group_samples_it_beside_which_others():
    draw = Draw(seed=3, position=5, purpose=0)
    together, alone = draw.seeds(0, range(8)), draw.seeds(1, [6])
    assert together.requests[6] == alone.requests[0]
    assert len(set(together.requests)) == 8 and together.stream != alone.stream


def test_each_purpose_position_and_source_has_numbers_of_its_own():
    draws = [Draw(3, 5, 0), Draw(4, 5, 0), Draw(3, 6, 0), Draw(3, 5, 1), Draw(3, 5, 0, source=2)]
    found = [draw.seeds(0, [0, 1]) for draw in draws]
    assert len({one.stream for one in found}) == len(draws)
    assert len({seed for one in found for seed in one.requests}) == 2 * len(draws)


def test_streams_are_those_of_earlier_releases():
    """What a CPU samples is not changed by seeds a prompt."""
    assert Draw(3, 5, 1).seeds(2, []).stream == seed_of(3, 5, 2, 1)
    assert Draw(3, 5, 1, source=4).seeds(2, []).stream == seed_of(3, 5, 2, 1, 4)
