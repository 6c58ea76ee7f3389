"""Values for property tests."""

from hypothesis import strategies as st

advantage_values = st.one_of(st.just(0.0), st.floats(-3, 3).filter(lambda a: abs(a) > 1e-6))
