"""Random examples of property tests."""

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

ALL = "CEPO_FUZZ" in os.environ


def examples(number: int, **strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test on random examples: `number` with `make test-fuzz`, else a twelfth of them, the same in every run."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        configured = settings(
            max_examples=number if ALL else max(8, number // 12),
            derandomize=not ALL,
            database=None,
            print_blob=True,  # a failure prints the code that repeats it
            suppress_health_check=list(HealthCheck),
        )
        run = configured(given(**strategies)(test))
        return pytest.mark.fuzz(run) if ALL else run

    return decorate
