"""Settings and fixtures of all tests: no network, no GPU, tiers, small models."""

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in background jobs of a shell; some tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from pathlib import Path

import pytest
from hypothesis import settings

from cepo import load_figures
from tests.support.distillation import lessons  # noqa: F401
from tests.support.tiers import is_integration
from tests.support.tiny_models import as_text, save_text_model
from tests.support.training import loss_inputs, task  # noqa: F401

# Tests measure no time, so examples have no deadline. They are the same in every run, unless
# `--hypothesis-profile=explore`.
settings.register_profile("untimed", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    """Mark the tests of the tiers `integration` and `browser`."""
    for item in items:
        module = item.path.relative_to(Path(__file__).parent).with_suffix("").as_posix()
        if "browser" in item.fixturenames:
            item.add_marker(pytest.mark.browser)
        elif is_integration(module, item.name):
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def figures():
    """Twelve training problems of the figures task."""
    return load_figures("train", 12)


@pytest.fixture(scope="session")
def text_figures(figures):
    """The same problems as text, with the printed numbers in the question."""
    return figures.map(as_text).remove_columns("image")


@pytest.fixture(scope="session")
def text_model_path(tmp_path_factory) -> str:
    """A text-only model with random weights and the shipped policy's tokenizer."""
    return save_text_model(tmp_path_factory.mktemp("text-model"))
