"""GSPO: golden value A1."""

import pytest
from support.goldens import a1

from align.losses import sequence_surrogate


@pytest.mark.parametrize("form", ["sequence", "token"])
def test_gspo_golden(form):
    assert a1(sequence_surrogate(form=form)) == pytest.approx(0.18959399933, abs=1e-10)
