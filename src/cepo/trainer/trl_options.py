"""Support for every option of TRL's GRPOConfig: a test validates this table, and docs/options.md shows it.

`advantages`: with token advantages in TRL's loss. `divergence`: with a divergence over the vocabulary as the loss
(`CEPOConfig.uses_divergence_loss`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import GenerationConfig

Kind = Literal["exact", "refused", "known"]


@dataclass(frozen=True)
class Support:
    """Support for an option of TRL.

    Attributes:
        advantages, divergence: ``exact``: the effect that TRL documents; ``refused``: no effect, or another one, so a
            value other than the default is refused; ``known``: see `note`.
        note: For users.
    """

    advantages: Kind
    divergence: Kind
    note: str = ""


_EXACT = Support("exact", "exact")
_LOSS = Support("exact", "refused", "part of TRL's loss")
_SAMPLING = Support("known", "known", "sampling only: teachers use whole distributions at the same temperature")
_REFERENCE = Support("exact", "known", "of the reference model, which only beta loads")
_OF_LOSS_TYPE = Support("exact", "known", "of one loss_type")
_VLLM = Support("exact", "exact", "of the sampling engine")

TRL_OPTIONS: dict[str, Support] = {
    **dict.fromkeys(("model_init_kwargs", "trust_remote_code", "disable_dropout", "ds3_gather_for_generation"), _EXACT),
    "router_aux_loss_coef": Support("exact", "refused", "part of TRL's loss; rows are not skipped with it"),
    "cast_lm_head_to_fp32": Support("exact", "refused", "teachers use the same head"),
    **dict.fromkeys(("num_generations", "num_generations_eval", "max_completion_length", "shuffle_dataset"), _EXACT),
    **dict.fromkeys(("pad_to_multiple_of", "generation_batch_size", "steps_per_generation"), _EXACT),
    "temperature": Support("exact", "exact", "of the policy's and the teachers' distributions"),
    **dict.fromkeys(("top_p", "top_k", "min_p", "repetition_penalty"), _SAMPLING),
    "generation_kwargs": Support("known", "known", "sampling only; keys with which training breaks are refused"),
    "chat_template_kwargs": Support("exact", "exact", "also for teachers' prompts"),
    **dict.fromkeys(("cache_implementation", "use_transformers_paged"), Support("exact", "exact", "sampling only")),
    **dict.fromkeys(
        ("use_transformers_continuous_batching", "transformers_continuous_batching_config"),
        Support("exact", "exact", "sampling only"),
    ),
    **dict.fromkeys(
        (
            *("use_vllm", "vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode", "vllm_structured_outputs_regex"),
            *("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout"),
            *("vllm_group_port", "vllm_gpu_memory_utilization", "vllm_max_model_length"),
            "vllm_tensor_parallel_size",
        ),
        _VLLM,
    ),
    **dict.fromkeys(
        (
            *("vllm_importance_sampling_correction", "vllm_importance_sampling_mode"),
            *("vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min"),
            "vllm_importance_sampling_cap",
        ),
        Support("exact", "exact", "weights token advantages and divergences alike"),
    ),
    "beta": Support("exact", "refused", "part of TRL's loss; rows are not skipped with it"),
    "use_bias_correction_kl": Support("known", "known", "of the KL term"),
    "num_iterations": Support("exact", "exact", "a batch is scored once; importance_clip weights divergences"),
    **dict.fromkeys(("epsilon", "epsilon_high", "delta", "off_policy_mask_threshold"), _LOSS),
    **dict.fromkeys(("sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos"), _OF_LOSS_TYPE),
    **dict.fromkeys(("vespo_k_neg", "vespo_lambda_neg"), _OF_LOSS_TYPE),
    "importance_sampling_level": Support(
        "refused", "refused", "with sequence, only the mean of a rollout's token advantages reaches the gradient"
    ),
    "reward_weights": Support("exact", "exact", "the total reward decides which rollout has the lowest"),
    **dict.fromkeys(
        ("multi_objective_aggregation", "scale_rewards"), Support("exact", "refused", "of GRPO's advantages")
    ),
    "loss_type": Support(
        "exact",
        "refused",
        "methods with a loss that is a mean over all tokens (rlcsd, sdar) refuse grpo, sapo and luspo",
    ),
    "mask_truncated_completions": Support("exact", "exact", "such rollouts are neither scored nor trained on"),
    **dict.fromkeys(("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"), _REFERENCE),
    "top_entropy_quantile": Support("exact", "refused", "part of TRL's loss; rows are not skipped with it"),
    **dict.fromkeys(
        ("entropy_coef", "use_adaptive_entropy"),
        Support("exact", "refused", "part of TRL's loss; rows are not skipped with it"),
    ),
    **dict.fromkeys(
        ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
        Support("exact", "known", "of use_adaptive_entropy"),
    ),
    "max_tool_calling_iterations": Support("exact", "exact", "tool results are not trained on"),
    **dict.fromkeys(("log_completions", "log_multimodal", "num_completions_to_print", "log_unique_prompts"), _EXACT),
    "log_completions_hub_repo": _EXACT,
}


@dataclass(frozen=True)
class Breaking:
    """A key of `generation_kwargs` with which training breaks.

    Attributes:
        reason, fix: For users.
        harmless: Values with which training works.
    """

    reason: str
    fix: str = "leave it out"
    harmless: tuple[Any, ...] = (None,)


_TOKENIZER = "generate needs a tokenizer for it, which TRL does not pass"
_ONE_ROW = "generate supports it for a batch of one completion only"
_COUNT = "TRL expects one completion for each prompt of the batch"
_END_TOKENS = "set eos_token_id in the generation_config.json of the model"
# Other keys are harmless: they change the sampled distribution, as top_k does; cut all completions at one length
# (max_time); or change the padding (pad_token_id), which the mask leaves out.
_BREAKING = {
    "eos_token_id": Breaking(
        "padding after end tokens unknown to TRL's completion mask would be trained on", _END_TOKENS
    ),
    "stop_strings": Breaking(_TOKENIZER, _END_TOKENS),
    "token_healing": Breaking(_TOKENIZER, harmless=(None, False)),
    "forced_eos_token_id": Breaking("the policy would be trained on a token that it did not sample"),
    "num_beams": Breaking("completions would not be samples of the policy, as the loss assumes", harmless=(None, 1)),
    "do_sample": Breaking("all completions of a prompt would be the same", harmless=(True,)),
    "num_return_sequences": Breaking(_COUNT, "set num_generations", harmless=(None, 1)),
    "return_dict_in_generate": Breaking("TRL expects token ids", harmless=(None, False)),
    "prompt_lookup_num_tokens": Breaking(_ONE_ROW),
    "assistant_early_exit": Breaking(_ONE_ROW),
}
# With vLLM, which returns no padding: its stop and stop_token_ids end completions, and the mask is correct.
_UNKNOWN_TO_VLLM = "vLLM's SamplingParams has no such key"
_BREAKING_IN_VLLM = {
    "eos_token_id": Breaking(_UNKNOWN_TO_VLLM, "set stop_token_ids", harmless=()),
    "stop_strings": Breaking(_UNKNOWN_TO_VLLM, "set stop", harmless=()),
    "n": Breaking(_COUNT, "set num_generations", harmless=()),
    "logprobs": Breaking("TRL would take the most likely token's log-prob for the sampled one's", harmless=(0,)),
}
# With mask_truncated_completions, which treats completions without one of the model's end tokens as truncated.
_UNSEEN = Breaking(
    "mask_truncated_completions would mask completions with such an end", "leave one of the two out", (None, [], False)
)
_UNSEEN_ENDS = dict.fromkeys(("stop", "stop_token_ids", "ignore_eos"), _UNSEEN)
# Keys that have to agree with another option, which TRL's losses and log-probs use.
_OPTION_OF = {
    "max_new_tokens": "max_completion_length",
    "max_tokens": "max_completion_length",
    "temperature": "temperature",
}


def generation_kwargs_problem(given: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """The reason why a run cannot train with these `generation_kwargs`, with the key and the fix; None if it can.

    Args:
        given: The `generation_kwargs`.
        options: The other options of the run by name, with use_vllm, mask_truncated_completions and `_OPTION_OF`.
    """
    breaking = _BREAKING_IN_VLLM if options["use_vllm"] else _BREAKING
    if options["use_vllm"] and options["mask_truncated_completions"]:
        breaking = breaking | _UNSEEN_ENDS
    known = GenerationConfig()
    for key, value in given.items():
        option, found = _OPTION_OF.get(key), breaking.get(key)
        if option is not None:
            if value != options[option]:
                return f"{key} {value!r} contradicts {option} {options[option]!r}, which the loss uses; set {option}"
        elif found is not None:
            if value not in found.harmless:
                return f"{key}: {found.reason}; {found.fix}"
        elif not options["use_vllm"] and not hasattr(known, key):
            return f"{key}: transformers' GenerationConfig has no such key; leave it out"
    return None
