"""docs/moving.md: the options of cepo, TRL's SDPO and TRL's SDFT that it names exist."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from trl import GRPOConfig
from trl.experimental.sdft import SDFTConfig
from trl.experimental.sdpo import SDPOConfig

from cepo import METHODS, CEPOConfig
from cepo.methods.registry import presets
from cepo.trainer.arguments import make_parser

PAGE = (Path(__file__).parents[1] / "docs" / "moving.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
OPTIONS = {*(action.dest for action in make_parser()._actions), *(field.name for field in fields(CEPOConfig))}
# Values of options in the second column.
VALUES = {
    *METHODS,
    *presets(),
    *("full", "top_k", "sampled", "initial", "policy", "ema", "rollout", "linear", "constant", "uniform"),
    *("prefix", "suffix", "whole", "solution", "paper", "{answer}"),
}


def rows_of(title):
    table = [line.strip("|").split(" | ") for line in SECTIONS[title].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in table]


def names_in(cell):
    return {name for quoted in re.findall(r"`(.*?)`", cell) for name in re.findall(r"[\w{}/]+", quoted)}


@pytest.mark.parametrize(
    "title", ["From TRL's SDPOTrainer and SDFTTrainer", "From ms-swift's RLSD", "From the CEPO paper's fork"]
)
def test_options_of_cepo_exist(title):
    rows = rows_of(title)
    assert len(rows) > 5
    for row in rows:
        for name in names_in(row[1]):
            known = name in OPTIONS or name in VALUES or name.startswith("cepo/") or name.replace(".", "").isdigit()
            assert known, f"{title}: {name}"


def test_every_sdpo_option_that_grpo_lacks_is_named():
    named = set().union(*(names_in(row[0]) for row in rows_of("From TRL's SDPOTrainer and SDFTTrainer")))
    grpo = {field.name for field in fields(GRPOConfig)}
    sdpo = {field.name for field in fields(SDPOConfig)} - grpo
    assert sdpo - {"max_prompt_length"} <= named | OPTIONS
    known = {field.name for config in (SDPOConfig, SDFTConfig) for field in fields(config)} | {"privileged_context"}
    values = {"full_logits", "topk_logits", "sampled_token", "base", "live", "ema", "SDFT"}
    assert {name for name in named if not name.isdigit()} - values <= known


def test_four_options_give_trls_trainer():
    """The four options exist. test_trainer.py checks that a run with them is bit-identical to TRL's."""
    documented = re.findall(r'`(\w+)=("?[\w.]+"?)`', SECTIONS["From TRL's GRPOTrainer"])
    options = {name: {"None": None, "False": False}.get(value, value.strip('"')) for name, value in documented}
    assert set(options) == {"method", "epsilon_high", "shared_prompt_update", "skip_zero_advantage"}
    CEPOConfig(output_dir="unused", bf16=False, **options)
