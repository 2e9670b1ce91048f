"""Numbers that must agree: up to the digits of a golden value, up to rounding, or bit for bit."""

import numpy as np
import pytest
import torch


def exactly(value):
    """Equal up to the ten digits that golden values have."""
    return pytest.approx(value, abs=5e-10)


def allclose(found, golden):
    """The same for arrays."""
    np.testing.assert_allclose(found, golden, rtol=0, atol=5e-10)


def close(a, b):
    """Equal up to rounding in float64."""
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def same(a, b):
    """Bit for bit, but for the sign of a zero."""
    assert torch.equal(a, b), (a, b)


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def row(*values):
    return matrix(values)
