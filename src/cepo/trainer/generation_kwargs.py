"""Validation of `generation_kwargs`; docs/options.md has the support for every option of TRL."""

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

# Keys with which training breaks, each with the values that are harmless, and with the reason and the fix.
_Breaking = Mapping[str, tuple[tuple[Any, ...], str]]
_TOKENIZER = "generate needs a tokenizer for it, which TRL does not pass"
_ONE_ROW = "generate supports it for a batch of one completion only; leave it out"
_COUNT = "TRL expects one completion for each prompt of the batch; set num_generations"
_END_TOKENS = "set eos_token_id in the generation_config.json of the model"
# Other keys are harmless: they change the sampled distribution, as top_k does; cut all completions at one length
# (max_time); or change the padding (pad_token_id), which the mask leaves out.
_BREAKING: _Breaking = {
    "eos_token_id": ((None,), f"padding after end tokens that TRL does not know would be trained on; {_END_TOKENS}"),
    "stop_strings": ((None,), f"{_TOKENIZER}; {_END_TOKENS}"),
    "token_healing": ((None, False), f"{_TOKENIZER}; leave it out"),
    "forced_eos_token_id": ((None,), "the policy would be trained on a token that it did not sample; leave it out"),
    "num_beams": ((None, 1), "completions would not be samples of the policy, as the loss assumes; leave it out"),
    "do_sample": ((True,), "all completions of a prompt would be the same; leave it out"),
    "num_return_sequences": ((None, 1), _COUNT),
    "return_dict_in_generate": ((None, False), "TRL expects token ids; leave it out"),
    "prompt_lookup_num_tokens": ((None,), _ONE_ROW),
    "assistant_early_exit": ((None,), _ONE_ROW),
}
# With vLLM, which returns no padding: its stop and stop_token_ids end completions, and the mask is correct.
_BREAKING_IN_VLLM: _Breaking = {
    "eos_token_id": ((), "vLLM's SamplingParams has no such key; set stop_token_ids"),
    "stop_strings": ((), "vLLM's SamplingParams has no such key; set stop"),
    "n": ((), _COUNT),
    "logprobs": ((0,), "TRL would take the most likely token's log-prob for the sampled one's; leave it out"),
}
# With mask_truncated_completions, which treats completions without one of the model's end tokens as truncated.
_UNSEEN_ENDS: _Breaking = dict.fromkeys(
    ("stop", "stop_token_ids", "ignore_eos"),
    ((None, [], False), "mask_truncated_completions would mask completions with such an end; leave one of them out"),
)
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
        breaking = {**breaking, **_UNSEEN_ENDS}
    known = GenerationConfig()
    for key, value in given.items():
        option, found = _OPTION_OF.get(key), breaking.get(key)
        if option is not None:
            if value != options[option]:
                return f"{key} {value!r} contradicts {option} {options[option]!r}, which the loss uses; set {option}"
        elif found is not None:
            harmless, problem = found
            if value not in harmless:
                return f"{key}: {problem}"
        elif not options["use_vllm"] and not hasattr(known, key):
            return f"{key}: transformers' GenerationConfig has no such key; leave it out"
    return None
