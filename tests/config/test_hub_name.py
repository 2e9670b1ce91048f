"""Names on the hub."""

from align.config.hub_name import check_repo_name


def test_right_repository_name():
    check_repo_name("user/gfpo_chain-sum.v2")
