"""What hypothesis draws for the tests of objectives, and how often."""

from hypothesis import settings
from hypothesis import strategies as st

seeds = st.integers(0, 10_000)
few = settings(max_examples=5)
