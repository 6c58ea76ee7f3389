"""Every option of TRL beside every method: none is forgotten, and what is refused is refused by name."""

from dataclasses import fields

import pytest
from transformers import TrainingArguments
from trl import GRPOConfig

from cepo import CEPOConfig
from cepo.methods import METHODS
from cepo.trainer.trl_options import TRL_OPTIONS
from tests.test_trainer import QUICK

ADDED = {one.name for one in fields(GRPOConfig)} - {one.name for one in fields(TrainingArguments)}
# A value that is not the default, for those that a distillation refuses.
OTHER = {
    "cast_lm_head_to_fp32": True,
    "beta": 0.1,
    "epsilon": 0.3,
    "epsilon_high": 0.4,
    "delta": 2.0,
    "off_policy_mask_threshold": 0.5,
    "importance_sampling_level": "sequence",
    "multi_objective_aggregation": "normalize_then_sum",
    "scale_rewards": "batch",
    "loss_type": "bnpo",
    "top_entropy_quantile": 0.5,
    "entropy_coef": 0.01,
    "use_adaptive_entropy": True,
}
# Refused when the model is there: whether it has a router is not known before.
WITH_THE_MODEL = {"router_aux_loss_coef"}
REFUSED = [name for name, standing in TRL_OPTIONS.items() if standing.distilling == "refused"]


def configured(tmp_path, method, **options):
    needs = {"teacher_model_name_or_path": "x"} if METHODS[method].needs_other_model else {}
    return CEPOConfig(output_dir=str(tmp_path), method=method, **(QUICK | needs | options))


def test_the_table_has_every_option_of_trl():
    assert set(TRL_OPTIONS) == ADDED
    assert set(OTHER) | WITH_THE_MODEL == set(REFUSED)
    assert not [name for name, standing in TRL_OPTIONS.items() if standing.placing == "refused"]


@pytest.mark.parametrize("method", [method.name for method in METHODS.values() if method.distils])
@pytest.mark.parametrize("name", OTHER)
def test_a_distillation_refuses_by_name_what_it_would_not_read(tmp_path, method, name):
    with pytest.raises(ValueError, match=rf"loss of its own, in which .*\b{name}\b.* would do nothing"):
        configured(tmp_path, method, **{name: OTHER[name]})


@pytest.mark.parametrize("method", [method.name for method in METHODS.values() if not method.distils])
@pytest.mark.parametrize("name", OTHER)
def test_token_advantages_take_them_all(tmp_path, method, name):
    assert getattr(configured(tmp_path, method, **{name: OTHER[name]}), name) == OTHER[name]
