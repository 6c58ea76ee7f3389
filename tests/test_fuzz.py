"""Property tests on random input: a few examples in the quick tier, more than 10,000 with `make test-fuzz`."""

import pytest

from .fuzz import of_credit, of_options, of_text  # noqa: F401  # register their properties
from .fuzz.properties import PROPERTIES


@pytest.mark.parametrize("prop", PROPERTIES, ids=lambda prop: prop.name)
def test_a_few_examples(prop):
    prop.run(max(8, prop.examples // 12), derandomize=True)


@pytest.mark.fuzz
@pytest.mark.parametrize("prop", PROPERTIES, ids=lambda prop: prop.name)
def test_many_examples(prop):
    assert prop.run(prop.examples, derandomize=False) >= prop.examples, "hypothesis ran out of examples"


def test_properties_have_ten_thousand_examples():
    assert sum(prop.examples for prop in PROPERTIES) >= 10_000
