"""Any input: a few examples of each property here, at least 10,000 in all with `make fuzz`."""

import pytest

from .fuzz import of_credit, of_options, of_text  # noqa: F401  # register their properties
from .fuzz.properties import PROPERTIES

ENOUGH = 10_000
_EVERY = 12  # one in so many for `make test`


@pytest.mark.parametrize("one", PROPERTIES, ids=lambda one: one.name)
def test_a_few(one):
    one.run(max(8, one.examples // _EVERY), derandomize=True)


@pytest.mark.fuzz
@pytest.mark.parametrize("one", PROPERTIES, ids=lambda one: one.name)
def test_many(one):
    before = one.tried
    one.run(one.examples, derandomize=False)
    assert one.tried - before >= one.examples, "hypothesis has run out of examples"


@pytest.mark.fuzz
def test_there_were_enough(capsys):
    """Of those that ran, when all of them did."""
    total = sum(one.tried for one in PROPERTIES)
    with capsys.disabled():
        print(f" {total} examples of {len(PROPERTIES)} properties ", end="")
    assert total >= ENOUGH or not all(one.tried >= one.examples for one in PROPERTIES)


def test_enough_are_asked_for():
    assert sum(one.examples for one in PROPERTIES) >= ENOUGH
