"""A real step with each of TRL's options that the table calls exact, at a value that is not its default.

For methods that give tokens advantages: with equal references, CEPO's (B, T) advantages are GRPO's, so that loss and
gradient must be those of TRL's own trainer on the same rollouts. Then with evidence, and for a distillation where it
takes the option: a finite step.
"""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
import trl
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM
from trl import GRPOConfig, GRPOTrainer

import cepo.methods.stages
from cepo import CEPOConfig, CEPOTrainer, References
from tests.support.training import QUICK, half_right, is_sound, letters, logged, loss_inputs, make, train, wrong_answers
from tests.support.trl_options import TRL_OPTIONS

__all__ = ["loss_inputs"]  # a fixture

# What cannot be run on a CPU without a server, a network or an engine, and who has a word on it.
NOT_HERE = {
    **{name: "vLLM" for name in TRL_OPTIONS if name.startswith("vllm_") and "importance" not in name},
    **{name: "a double in vLLM's place: test_served.py" for name in TRL_OPTIONS if name.startswith("vllm_importance")},
    "use_vllm": "a double in vLLM's place: test_served.py",
    "ds3_gather_for_generation": "DeepSpeed: test_sharding.py has its default",
    "trust_remote_code": "a model whose code is on the Hub",
    "log_completions_hub_repo": "the Hub",
}

# One run for options that do not touch each other; the gradients are those of later updates, ratios away from 1.
EVERYWHERE = {
    "loading": {"model_init_kwargs": {"attn_implementation": "eager"}, "disable_dropout": True},
    "batches": {"num_generations": 2, "num_generations_eval": 1, "max_completion_length": 5, "pad_to_multiple_of": 8},
    "order": {"shuffle_dataset": False, "generation_batch_size": 16, "temperature": 0.6, "reward_weights": [0.5, 2.0]},
    "reuse": {"steps_per_generation": 2, "num_iterations": 2, "mask_truncated_completions": True},
    "template": {"chat_template_kwargs": {"enable_thinking": False}, "cache_implementation": "static"},
    "log": {
        "log_completions": True,
        "num_completions_to_print": 1,
        "log_unique_prompts": True,
        "log_multimodal": False,
    },
}
_ENTROPY = {"entropy_coef_min": 0.1, "entropy_coef_max": 0.3, "entropy_coef_delta": 0.1, "entropy_target": 9.0}
IN_THE_LOSS = {
    "beta": {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5},
    "clip": {"epsilon": 0.01, "epsilon_high": 0.02, "delta": 1.5, "num_iterations": 2},
    "off_policy": {"off_policy_mask_threshold": 1e-5, "num_iterations": 2},
    "quantile": {"top_entropy_quantile": 0.5},
    "entropy": {"entropy_coef": 0.1},
    "adaptive": {"use_adaptive_entropy": True, **_ENTROPY},
    "sapo": {"loss_type": "sapo", "sapo_temperature_neg": 2.0, "sapo_temperature_pos": 0.5, "num_iterations": 2},
    "vespo": {
        **{"loss_type": "vespo", "vespo_k_pos": 1.5, "vespo_lambda_pos": 2.0, "vespo_k_neg": 2.0},
        **{"vespo_lambda_neg": 1.5, "num_iterations": 2},
    },
    "batch": {"scale_rewards": "batch"},
    "objectives": {"multi_objective_aggregation": "normalize_then_sum", "reward_weights": [0.5, 2.0]},
    "head": {"cast_lm_head_to_fp32": True, "model_init_kwargs": {"dtype": "bfloat16"}},
}
# With tests of their own below.
ALONE = {
    "router_aux_loss_coef",
    "use_transformers_paged",
    "use_transformers_continuous_batching",
    "transformers_continuous_batching_config",
    "max_tool_calling_iterations",
}


def test_none_is_left_out_and_none_is_at_its_default():
    everywhere, own = ({name for group in groups.values() for name in group} for groups in (EVERYWHERE, IN_THE_LOSS))
    exact = {name for name, support in TRL_OPTIONS.items() if support.advantages == "exact"}
    assert (everywhere | own | ALONE) & set(NOT_HERE) == set()
    assert exact == everywhere | own | ALONE | set(NOT_HERE)
    exact = {name for name, support in TRL_OPTIONS.items() if support.divergence == "exact"}
    assert exact <= everywhere | ALONE | set(NOT_HERE)
    defaults = {one.name: one.default for one in fields(GRPOConfig)}
    for options in (*EVERYWHERE.values(), *IN_THE_LOSS.values()):
        assert all(defaults[name] != value for name, value in options.items())


def rewards_for(options):
    return [half_right, letters] if "reward_weights" in options else half_right


def with_room(group, model):
    """The options of a group, and a rate that moves the policy between two updates."""
    options = {"learning_rate": 0.05, "epsilon_high": 0.28, **(EVERYWHERE | IN_THE_LOSS)[group]}
    if group == "reuse":  # some of the completions end
        end = AutoTokenizer.from_pretrained(model).eos_token_id
        options["generation_kwargs"] = {"sequence_bias": [[[end], 4.0]]}
    return options


@pytest.mark.integration
@pytest.mark.parametrize("group", [*EVERYWHERE, *IN_THE_LOSS])
def test_cepo_with_equal_references_is_trls_trainer(tmp_path, text_figures, text_model_path, monkeypatch, group):
    options = with_room(group, text_model_path)
    theirs = train(tmp_path, text_figures, text_model_path, rewards_for(options), GRPOTrainer, **options)
    wrong_answers(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(
            cepo.methods.stages,
            "choose_references",
            lambda attempts, solution, **_: [References(solution, (solution,))] * len(attempts),
        )
        # Prompts that run once are exact to rounding, which two steps of half precision, or of VESPO, make more of.
        options["shared_prompt_update"] = "never"
        ours = train(tmp_path, text_figures, text_model_path, rewards_for(options), **options)
    assert 0 < logged(ours, "cepo/rows_scored")[0] <= 1
    for key in ("reward", "completions/mean_length"):
        assert logged(ours, key) == pytest.approx(logged(theirs, key), rel=1e-6)
    # The loss is near 0 where advantages cancel; what is compared is as large as the gradient.
    assert max(logged(theirs, "grad_norm")) > 1e-3
    assert logged(ours, "loss") == pytest.approx(logged(theirs, "loss"), abs=1e-5, rel=1e-4)
    assert logged(ours, "grad_norm") == pytest.approx(logged(theirs, "grad_norm"), rel=1e-3)


@pytest.mark.parametrize("group", [*EVERYWHERE, *IN_THE_LOSS])
def test_a_step_with_evidence(tmp_path, text_figures, text_model_path, monkeypatch, group, loss_inputs):
    wrong_answers(monkeypatch)
    options = with_room(group, text_model_path)
    trainer = train(tmp_path, text_figures, text_model_path, rewards_for(options), **options)
    assert is_sound(trainer)
    assert logged(trainer, "cepo/evidence/incorrect_std")[0] > 0
    assert all(batch["advantages"].dim() == 2 for batch in loss_inputs)
    check(group, trainer)


@pytest.mark.parametrize("group", EVERYWHERE)
def test_a_distillation(tmp_path, text_figures, text_model_path, group):
    options = with_room(group, text_model_path)
    del options["epsilon_high"]
    trainer = train(tmp_path, text_figures, text_model_path, rewards_for(options), method="opsd", **options)
    assert is_sound(trainer)
    assert logged(trainer, "cepo/rows_scored")[0] > 0
    assert any(norm > 0 for norm in logged(trainer, "grad_norm"))
    check(group, trainer)


KEYS = ("completion_ids", "completion_mask")


def check(group, trainer):
    """What can be seen of an option from outside."""
    batch = trainer._buffered_inputs[0]
    if group == "loading":
        assert trainer.model.config._attn_implementation == "eager"
    elif group == "batches":
        assert batch["completion_ids"].shape[1] == batch["prompt_ids"].shape[1] % 8 + 8 == 8
        assert batch["completion_mask"].sum(1).max() <= 5
    elif group == "order":
        assert len(trainer._buffered_inputs) == 2
    elif group == "reuse":
        ids, masks = (torch.cat([part[name] for part in trainer._buffered_inputs]) for name in KEYS)
        cut = (ids == trainer.processing_class.eos_token_id).any(1).logical_not()
        assert torch.equal(masks.any(1), ~cut)
        assert 0 < cut.sum() < len(cut)
    elif group == "head":
        assert trainer.model.lm_head.weight.dtype == torch.float32


# Options that need something of their own -----------------------------------------------------------------------------


def test_a_router_keeps_its_own_loss(tmp_path, text_figures, text_model_path, monkeypatch):
    """A mixture of experts: TRL adds the auxiliary loss, and rows are not skipped."""
    wrong_answers(monkeypatch)
    tokenizer = AutoTokenizer.from_pretrained(text_model_path)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = Qwen3MoeConfig(vocab_size=len(tokenizer), num_experts=4, num_experts_per_tok=2, **sizes, **heads, **ends)
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "experts")
    tokenizer.save_pretrained(tmp_path / "experts")
    norms = []
    for coefficient in (0.0, 0.5):
        trainer = make(
            tmp_path,
            text_figures,
            str(tmp_path / "experts"),
            half_right,
            router_aux_loss_coef=coefficient,
            max_steps=1,
        )
        trainer.train()
        assert is_sound(trainer)
        assert trainer._skips is (coefficient == 0)
        norms.append(logged(trainer, "grad_norm")[0])
    assert logged(trainer, "aux_loss")[0] > 0
    assert norms[0] != norms[1]


@pytest.mark.parametrize("method", ["cepo", "opsd"])
@pytest.mark.parametrize("most", [1, 2])
def test_tools_may_be_called_so_often(tmp_path, text_figures, text_model_path, monkeypatch, method, most, loss_inputs):
    """The policy's words are a double's, which always calls; what the tool returns is not trained on."""
    wrong_answers(monkeypatch)
    tokenizer = AutoTokenizer.from_pretrained(text_model_path)
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    call = '<tool_call>\n{"name": "add", "arguments": {"one": 1, "other": 2}}\n</tool_call><|im_end|>'
    made = []

    def add(one: int, other: int) -> int:
        """Adds.

        Args:
            one: A number.
            other: Another.
        """
        made.append((one, other))
        return one + other

    # Longer prompts than the model of the other tests has places for.
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(text_model_path, max_position_embeddings=2048))

    class Calls(CEPOTrainer):
        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            return [list(self._tokenizer(call, add_special_tokens=False)["input_ids"]) for _ in prompt_ids], None

    options = QUICK | {"max_steps": 1, "max_completion_length": 400, "skip_zero_advantage": None, "method": method}
    args = CEPOConfig(output_dir=str(tmp_path), max_tool_calling_iterations=most, **options)
    trainer = Calls(model, half_right, args, text_figures, processing_class=tokenizer, tools=[add])
    trainer.train()
    assert is_sound(trainer)
    assert made == [(1, 2)] * 8 * most
    (batch,) = trainer._buffered_inputs
    returned = batch["completion_mask"].bool() & ~batch["tool_mask"].bool()
    assert returned.any(1).all()
    own = batch["completion_mask"].bool() & batch["tool_mask"].bool()
    if method == "cepo":
        (batch,) = loss_inputs
        assert (batch["evidence"][own] != 0).any()
        assert (batch["advantages"][returned] == 0).all()
        assert (batch["advantages"][own] != 0).all()
    else:
        assert batch["teacher_tokens"] == own.sum()


@pytest.mark.integration
@pytest.mark.parametrize("method", ["cepo", "opsd"])
@pytest.mark.parametrize("name", ["use_transformers_continuous_batching", "use_transformers_paged"])
def test_continuous_batching(tmp_path, text_figures, text_model_path, monkeypatch, method, name):
    wrong_answers(monkeypatch)
    own = {name: True, "transformers_continuous_batching_config": {"block_size": 16, "num_blocks": 64}}
    trainer = train(tmp_path, text_figures, text_model_path, half_right, method=method, max_steps=1, **own)
    assert is_sound(trainer)
    assert logged(trainer, "cepo/rows_scored") == [1.0]
