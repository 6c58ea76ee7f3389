"""Settings and fixtures of all tests: no network, no GPU, tiers, small models."""

import json
import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in background jobs of a shell; some tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from cepo import load_figures, policy_path
from tests.support.distillation import lessons  # noqa: F401
from tests.support.tiers import is_integration
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

    def as_text(row):
        numbers = " ".join(str(number) for number in (row["start"], *row["labels"]))
        return {"prompt": [{"role": "user", "content": f"{row['prompt'][0]['content']} {numbers}"}]}

    return figures.map(as_text).remove_columns("image")


@pytest.fixture(scope="session")
def text_model_path(tmp_path_factory) -> str:
    """A text-only model with random weights and the shipped policy's tokenizer."""
    folder: Path = tmp_path_factory.mktemp("text-model")
    tokenizer = AutoTokenizer.from_pretrained(policy_path())
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)  # independent of the order of tests
        Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config_file = folder / "tokenizer_config.json"
    settings = json.loads(config_file.read_text())
    settings.pop("processor_class", None)  # a tokenizer, not part of a processor
    config_file.write_text(json.dumps(settings))
    return str(folder)
