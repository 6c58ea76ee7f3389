"""The table of tests/support/tiers.py names existing tests."""

import re
from pathlib import Path

import pytest

from tests.support.tiers import ALL, INTEGRATION, QUICK

TESTS = Path(__file__).parent


@pytest.mark.parametrize("module", INTEGRATION)
def test_listed_tests_exist(module):
    found = set(re.findall(r"^def test_(\w+)", (TESTS / f"{module}.py").read_text(), re.M))
    listed = set(INTEGRATION[module]) - set(ALL)
    assert listed <= found, f"rename or remove in tests/support/tiers.py: {sorted(listed - found)}"


def test_exceptions_are_parameters_of_listed_tests():
    for module, names in QUICK.items():
        assert {name.partition("[")[0] for name in names} <= set(INTEGRATION[module])
