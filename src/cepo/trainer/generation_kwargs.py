"""Validation of `generation_kwargs`; docs/options.md has the support for every option of TRL."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig


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
