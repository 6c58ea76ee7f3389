"""Every option that TRL's GRPOConfig adds, beside our methods: a test walks this table, and docs/options.md shows it.

`placing`: for methods that give tokens advantages, in TRL's loss. `distilling`: for a divergence over the vocabulary, a
loss of its own (`CEPOConfig.distils_whole`).
"""

from dataclasses import dataclass
from typing import Literal

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
    **dict.fromkeys(("top_p", "top_k", "min_p", "generation_kwargs", "repetition_penalty"), _SAMPLING),
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
    "use_bias_correction_kl": Standing(
        "known", "known", "of the KL term; with importance_sampling_level sequence it must be false where beta is not 0"
    ),
    "num_iterations": Standing("exact", "exact", "evidence is found once a batch; importance_clip weighs divergences"),
    **dict.fromkeys(("epsilon", "epsilon_high", "delta", "off_policy_mask_threshold"), _LOSS),
    **dict.fromkeys(("sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos"), _OF_LOSS_TYPE),
    **dict.fromkeys(("vespo_k_neg", "vespo_lambda_neg"), _OF_LOSS_TYPE),
    "importance_sampling_level": Standing("exact", "refused", "sequence takes GSPO's token form"),
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
