"""Every option of TRL with every method: taken, or refused by name."""

import json
from dataclasses import fields

import pytest
import torch
from transformers import AutoTokenizer, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from cepo import CEPOConfig, cli
from cepo.methods import METHODS
from tests.support.methods import distills, needed_by
from tests.support.training import QUICK, half_right, make
from tests.support.trl_options import TRL_OPTIONS

ADDED = {one.name for one in fields(GRPOConfig)} - {one.name for one in fields(TrainingArguments)}
# Values other than the default, for options that distillation refuses.
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
# Refused after the model has been loaded, which may have a router.
SEQUENCE = "importance_sampling_level"
WITH_THE_MODEL = {"router_aux_loss_coef"}
REFUSED = [name for name, support in TRL_OPTIONS.items() if support.divergence == "refused"]


DISTILLING = list(filter(distills, METHODS))


def configured(tmp_path, method, **options):
    return CEPOConfig(output_dir=str(tmp_path), method=method, **(QUICK | needed_by(method) | options))


def test_the_table_has_every_option_of_trl():
    assert set(TRL_OPTIONS) == ADDED
    assert set(OTHER) | WITH_THE_MODEL == set(REFUSED)
    assert [name for name, support in TRL_OPTIONS.items() if support.advantages == "refused"] == [SEQUENCE]


@pytest.mark.parametrize("method", DISTILLING)
@pytest.mark.parametrize("name", OTHER)
def test_distillation_refuses_options_without_effect(tmp_path, method, name):
    with pytest.raises(ValueError, match=rf"its loss is a divergence, in which .*\b{name}\b.* would have no effect"):
        configured(tmp_path, method, **{name: OTHER[name]})


@pytest.mark.parametrize("method", [name for name in METHODS if name not in DISTILLING])
@pytest.mark.parametrize("name", [name for name in OTHER if name != SEQUENCE])
def test_other_methods_take_these_options(tmp_path, method, name):
    assert getattr(configured(tmp_path, method, **{name: OTHER[name]}), name) == OTHER[name]


def test_token_advantages_refuse_ratios_of_sequences(tmp_path):
    with pytest.raises(ValueError, match="only the mean of a rollout's token advantages reaches the gradient"):
        configured(tmp_path, "cepo", importance_sampling_level="sequence")
    assert configured(tmp_path, "grpo", importance_sampling_level="sequence").importance_sampling_level == "sequence"


# generation_kwargs ----------------------------------------------------------------------------------------------------

VLLM = {"use_vllm": True}


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (
            {"eos_token_id": [30]},
            {},
            "eos_token_id: padding after end .* set eos_token_id in the generation_config.json",
        ),
        ({"stop_strings": "\n"}, {}, "stop_strings: generate needs a tokenizer for it"),
        ({"token_healing": True}, {}, "token_healing: generate needs a tokenizer"),
        ({"forced_eos_token_id": 3}, {}, "forced_eos_token_id: the policy would be trained on a token that it did not"),
        ({"top_k": 3, "num_beams": 2}, {}, "num_beams: completions would not be samples of the policy"),
        ({"do_sample": False}, {}, "do_sample: all completions of a prompt would be the same"),
        ({"num_return_sequences": 2}, {}, "num_return_sequences: .* set num_generations"),
        ({"return_dict_in_generate": True}, {}, "return_dict_in_generate: TRL expects token ids"),
        ({"prompt_lookup_num_tokens": 2}, {}, "prompt_lookup_num_tokens: generate supports it for a batch of one"),
        (
            {"max_new_tokens": 5},
            {},
            "max_new_tokens 5 contradicts max_completion_length 24, which the loss uses; set max_",
        ),
        ({"temperature": 0.5}, {}, "temperature 0.5 contradicts temperature 1.0"),
        ({"stop": ["\n"]}, {}, "stop: transformers' GenerationConfig has no such key; leave it out"),
        ({"eos_token_id": 30}, VLLM, "eos_token_id: vLLM's SamplingParams has no such key; set stop_token_ids"),
        ({"stop_strings": "x"}, VLLM, "stop_strings: vLLM's SamplingParams has no such key; set stop"),
        ({"n": 2}, VLLM, "n: TRL expects one completion .* set num_generations"),
        ({"logprobs": 5}, VLLM, "logprobs: TRL would take the most likely token's log-prob"),
        ({"max_tokens": 5}, VLLM, "max_tokens 5 contradicts max_completion_length 24"),
        *(
            (
                {key: value},
                VLLM | {"mask_truncated_completions": True},
                f"{key}: mask_truncated_completions would mask",
            )
            for key, value in {"stop": ["x"], "stop_token_ids": [3], "ignore_eos": True}.items()
        ),
    ],
)
def test_generation_kwargs_with_which_training_breaks(tmp_path, given, options, message):
    with pytest.raises(ValueError, match=f"^generation_kwargs: {message}") as raised:
        CEPOConfig(str(tmp_path), generation_kwargs=given, **(QUICK | {"max_completion_length": 24} | options))
    assert "\n" not in str(raised.value)


def test_of_the_command_line(tmp_path, capsys):
    given = ["--generation_kwargs", json.dumps({"eos_token_id": [30]}), "--output_dir", str(tmp_path / "out")]
    assert cli.main(["train", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cepo: error: generation_kwargs: eos_token_id: padding after end")


@pytest.mark.parametrize(
    "given",
    [
        {"stop": ["x"], "include_stop_str_in_output": True},
        {"stop_token_ids": [30]},
        {"structured_outputs": {"regex": "[0-9]+"}, "max_tokens": 24, "logprobs": 0, "min_tokens": 3},
    ],
)
def test_generation_kwargs_of_vllm(tmp_path, given):
    CEPOConfig(str(tmp_path), generation_kwargs=given, **(QUICK | {"max_completion_length": 24, "use_vllm": True}))


def trained_tokens(tmp_path, dataset, model, trainer_class=GRPOTrainer, **options):
    """Completions of a step and their mask, with ends that the model is biased towards."""
    seen = []

    class Spy(trainer_class):
        def _generate_and_score_completions(self, inputs):
            seen.append(super()._generate_and_score_completions(inputs))
            return seen[-1]

    make(tmp_path, dataset, model, half_right, Spy, max_steps=1, max_completion_length=24, **options).train()
    return seen[0]["completion_ids"], seen[0]["completion_mask"].bool()


def test_trl_trains_on_padding_after_other_end_tokens(tmp_path, text_figures, text_model_path):
    """The reason why `CEPOConfig` refuses them; may change with a version of TRL."""
    pad = AutoTokenizer.from_pretrained(text_model_path).pad_token_id
    given = {"eos_token_id": list(range(20, 60))}
    ids, mask = trained_tokens(tmp_path, text_figures, text_model_path, generation_kwargs=given)
    assert mask.all()
    assert (ids == pad).float().mean() > 0.3


@pytest.mark.parametrize(
    "given",
    [
        {"pad_token_id": 9},
        {"top_k": 200, "max_new_tokens": 24, "temperature": 1.0, "do_sample": True, "num_beams": 1},
        {"eos_token_id": None, "num_return_sequences": 1, "return_dict_in_generate": False},
        {"min_new_tokens": 4, "suppress_tokens": [30], "repetition_penalty": 1.1},
    ],
)
def test_harmless_generation_kwargs(tmp_path, text_figures, text_model_path, given):
    end = AutoTokenizer.from_pretrained(text_model_path).eos_token_id
    given = {"sequence_bias": [[[end], 5.0]], **given}
    config = CEPOConfig(str(tmp_path), generation_kwargs=given, **(QUICK | {"max_completion_length": 24}))
    ids, mask = trained_tokens(tmp_path, text_figures, text_model_path, generation_kwargs=config.generation_kwargs)
    ended = ((ids == end).cumsum(1) - (ids == end).long()) > 0  # after the first end
    assert torch.equal(mask, ~ended)
    assert ended.any()
