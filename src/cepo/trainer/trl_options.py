"""Every option that TRL's GRPOConfig adds, beside our methods: a test walks this table, and docs/options.md shows it.

`placing`: for methods that give tokens advantages, in TRL's loss. `distilling`: for a divergence over the vocabulary, a
loss of its own (`CEPOConfig.uses_divergence_loss`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import GenerationConfig

Kind = Literal["exact", "refused", "known"]


@dataclass(frozen=True)
class Standing:
    """What comes of an option.

    Attributes:
        placing, distilling: ``exact``: it does there what TRL says; ``refused``: it would do nothing, or another
            thing, and is refused by name; ``known``: what `note` says.
        note: For people.
    """

    placing: Kind
    distilling: Kind
    note: str = ""


_EXACT = Standing("exact", "exact")
_LOSS = Standing("exact", "refused", "part of TRL's loss")
_SAMPLING = Standing("known", "known", "of sampling alone: teachers read whole distributions at the same temperature")
_REFERENCE = Standing("exact", "known", "of the reference model, which is there with beta alone")
_OF_LOSS_TYPE = Standing("exact", "known", "of one loss_type, and read by no other")
_VLLM = Standing("exact", "exact", "of the engine that samples")

TRL_OPTIONS: dict[str, Standing] = {
    **dict.fromkeys(("model_init_kwargs", "trust_remote_code", "disable_dropout", "ds3_gather_for_generation"), _EXACT),
    "router_aux_loss_coef": Standing("exact", "refused", "part of TRL's loss; rows are not skipped with it"),
    "cast_lm_head_to_fp32": Standing("exact", "refused", "teachers read through the same head"),
    **dict.fromkeys(("num_generations", "num_generations_eval", "max_completion_length", "shuffle_dataset"), _EXACT),
    **dict.fromkeys(("pad_to_multiple_of", "generation_batch_size", "steps_per_generation"), _EXACT),
    "temperature": Standing("exact", "exact", "of the policy's and the teachers' distributions alike"),
    **dict.fromkeys(("top_p", "top_k", "min_p", "repetition_penalty"), _SAMPLING),
    "generation_kwargs": Standing("known", "known", "of sampling alone; keys with which training breaks are refused"),
    "chat_template_kwargs": Standing("exact", "exact", "teachers' prompts are made with them too"),
    **dict.fromkeys(
        ("cache_implementation", "use_transformers_paged"), Standing("exact", "exact", "of sampling alone")
    ),
    **dict.fromkeys(
        ("use_transformers_continuous_batching", "transformers_continuous_batching_config"),
        Standing("exact", "exact", "of sampling alone"),
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
        Standing("exact", "exact", "weighs token advantages, and divergences, alike"),
    ),
    "beta": Standing("exact", "refused", "part of TRL's loss; rows are not skipped with it"),
    "use_bias_correction_kl": Standing("known", "known", "of the KL term"),
    "num_iterations": Standing("exact", "exact", "evidence is found once a batch; importance_clip weighs divergences"),
    **dict.fromkeys(("epsilon", "epsilon_high", "delta", "off_policy_mask_threshold"), _LOSS),
    **dict.fromkeys(("sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos"), _OF_LOSS_TYPE),
    **dict.fromkeys(("vespo_k_neg", "vespo_lambda_neg"), _OF_LOSS_TYPE),
    "importance_sampling_level": Standing(
        "refused", "refused", "sequence: of token advantages only the mean would count"
    ),
    "reward_weights": Standing("exact", "exact", "the reward decides which rollout is lowest"),
    **dict.fromkeys(
        ("multi_objective_aggregation", "scale_rewards"), Standing("exact", "refused", "of GRPO's advantages")
    ),
    "loss_type": Standing(
        "exact", "refused", "methods that weigh tokens in one mean over all of them refuse grpo, sapo and luspo"
    ),
    "mask_truncated_completions": Standing("exact", "exact", "such rollouts are neither read nor trained on"),
    **dict.fromkeys(("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"), _REFERENCE),
    "top_entropy_quantile": Standing("exact", "refused", "part of TRL's loss; rows are not skipped with it"),
    **dict.fromkeys(
        ("entropy_coef", "use_adaptive_entropy"),
        Standing("exact", "refused", "part of TRL's loss; rows are not skipped with it"),
    ),
    **dict.fromkeys(
        ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
        Standing("exact", "known", "of use_adaptive_entropy alone"),
    ),
    "max_tool_calling_iterations": Standing("exact", "exact", "what tools return is not trained on"),
    **dict.fromkeys(("log_completions", "log_multimodal", "num_completions_to_print", "log_unique_prompts"), _EXACT),
    "log_completions_hub_repo": _EXACT,
}


@dataclass(frozen=True)
class Breaking:
    """A key of `generation_kwargs` with which training breaks.

    Attributes:
        reason, fix: For people.
        harmless: Values with which it does not.
    """

    reason: str
    fix: str = "leave it out"
    harmless: tuple[Any, ...] = (None,)


_TOKENIZER = "generate needs a tokenizer for it, which TRL does not pass"
_ONE_ROW = "generate takes it for a batch of one completion alone"
_COUNT = "TRL expects one completion for each prompt of the batch"
_END_TOKENS = "set eos_token_id in the generation_config.json of the model"
# Other keys change the distribution that is sampled from, as top_k does; or where all completions are cut (max_time),
# which leaves no padding in the mask; or what follows the end of one (pad_token_id), which the mask leaves out.
_BREAKING = {
    "eos_token_id": Breaking(
        "padding after ends that TRL's completion mask does not know would be trained", _END_TOKENS
    ),
    "stop_strings": Breaking(_TOKENIZER, _END_TOKENS),
    "token_healing": Breaking(_TOKENIZER, harmless=(None, False)),
    "forced_eos_token_id": Breaking("the policy would be trained on a token that it did not sample"),
    "num_beams": Breaking("completions would not be samples of the policy, as the loss takes them", harmless=(None, 1)),
    "do_sample": Breaking("all completions of a prompt would be the same", harmless=(True,)),
    "num_return_sequences": Breaking(_COUNT, "set num_generations", harmless=(None, 1)),
    "return_dict_in_generate": Breaking("TRL reads token ids alone", harmless=(None, False)),
    "prompt_lookup_num_tokens": Breaking(_ONE_ROW),
    "assistant_early_exit": Breaking(_ONE_ROW),
}
# Where vLLM samples, which returns no padding: its stop and stop_token_ids end completions, and the mask is right.
_UNKNOWN_TO_VLLM = "vLLM's SamplingParams has no such key"
_BREAKING_IN_VLLM = {
    "eos_token_id": Breaking(_UNKNOWN_TO_VLLM, "set stop_token_ids", harmless=()),
    "stop_strings": Breaking(_UNKNOWN_TO_VLLM, "set stop", harmless=()),
    "n": Breaking(_COUNT, "set num_generations", harmless=()),
    "logprobs": Breaking("TRL would take the most likely token's log-prob for the sampled one's", harmless=(0,)),
}
# With mask_truncated_completions, which takes completions for truncated that do not end in the model's end tokens.
_UNSEEN = Breaking(
    "mask_truncated_completions would leave out completions that end so", "leave one of the two out", (None, [], False)
)
_UNSEEN_ENDS = dict.fromkeys(("stop", "stop_token_ids", "ignore_eos"), _UNSEEN)
# Keys that another option has to agree with: TRL's losses and log-probs read that option.
_OPTION_OF = {
    "max_new_tokens": "max_completion_length",
    "max_tokens": "max_completion_length",
    "temperature": "temperature",
}


def generation_kwargs_problem(given: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """Why a run cannot train with these `generation_kwargs`: the key, the reason and the fix; None if it can.

    Args:
        given: The `generation_kwargs`.
        options: The other options of the run by name: use_vllm, mask_truncated_completions, those of `_OPTION_OF`.
    """
    breaking = _BREAKING_IN_VLLM if options["use_vllm"] else _BREAKING
    if options["use_vllm"] and options["mask_truncated_completions"]:
        breaking = breaking | _UNSEEN_ENDS
    known = GenerationConfig()
    for key, value in given.items():
        option, found = _OPTION_OF.get(key), breaking.get(key)
        if option is not None:
            if value != options[option]:
                return f"{key} {value!r} contradicts {option} {options[option]!r}, which the loss reads; set {option}"
        elif found is not None:
            if value not in found.harmless:
                return f"{key}: {found.reason}; {found.fix}"
        elif not options["use_vllm"] and not hasattr(known, key):
            return f"{key}: transformers' GenerationConfig has no such key; leave it out"
    return None
