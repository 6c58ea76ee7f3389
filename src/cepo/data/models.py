"""Load policies, processors and teachers by folder or Hub name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ..scoring.prompts import tokenizer_of
from .adapters import holds_adapters, load_merged
from .embedded import holds_model, policy_of
from .errors import LoadingError, loading_errors
from .loading import looks_like_path

# Names of the vision tower in transformers' vision-language models.
VISION_TOWERS = {"visual", "vision_model", "vision_tower"}


def resolve_model(name: str, option: str = "model_name_or_path") -> str:
    """The model's folder or Hub name; of an embedded task's name, the folder of its policy."""
    name = policy_of(name)
    path = Path(name).expanduser()
    if path.exists():
        if not holds_model(path):
            raise LoadingError(f"{option}: {name} has neither config.json nor adapter_config.json")
        return str(path)
    if looks_like_path(name):
        raise LoadingError(f"{option}: there is no such folder: {name}")
    return name


def load_policy(name: str, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Load a model for evaluation and its processor or tokenizer. PEFT adapters are merged into their base.

    Raises:
        LoadingError: If the model is missing, or needs `trust_remote_code`.
    """
    from trl.trainer.utils import create_model_from_path

    path = resolve_model(name)
    load = load_merged if holds_adapters(path) else create_model_from_path
    with loading_errors("model_name_or_path", name):
        model = load(path, trust_remote_code=trust_remote_code)
    return model, load_processor(path, trust_remote_code=trust_remote_code)


def load_processor(name: str, *, trust_remote_code: bool = False) -> Any:
    """Load a model's processor, or its tokenizer if it has no processor, set up as in TRL.

    Raises:
        LoadingError: If the model has neither, has no chat template, or needs `trust_remote_code`.
    """
    from transformers import AutoProcessor

    try:
        # Without trust_remote_code, transformers would ask at the terminal.
        with loading_errors("model_name_or_path", name):
            processing_class = AutoProcessor.from_pretrained(
                name, padding_side="left", trust_remote_code=trust_remote_code
            )
    except LoadingError:
        raise
    except ValueError as error:  # a folder without a tokenizer
        raise LoadingError(f"model_name_or_path: cannot load the tokenizer of {name}: {error}") from error
    tokenizer = tokenizer_of(processing_class)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    require_chat_template(processing_class)
    return processing_class


def require_chat_template(processing_class: Any) -> None:
    """Refuse a model without a chat template."""
    if not getattr(processing_class, "chat_template", None) and not tokenizer_of(processing_class).chat_template:
        raise LoadingError(
            f"the model's {type(processing_class).__name__} has no chat template; use an instruction-tuned model, or "
            "set `chat_template` on its tokenizer"
        )


@contextmanager
def unsharded_loading() -> Iterator[None]:
    """Load whole weights on every process, also in a run whose policy is sharded.

    transformers would shard the weights as well (ZeRO-3), or load them on the first process only (FSDP).
    """
    from transformers.integrations import deepspeed

    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    config, flag = deepspeed._hf_deepspeed_config_weak_ref, os.environ.pop(name, None)
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
        if flag is not None:
            os.environ[name] = flag


def load_teacher_model(name: str, processing_class: Any, dtype: Any, *, trust_remote_code: bool = False) -> Any:
    """Load a teacher with the policy's vocabulary, in eval mode and without gradients.

    Raises:
        LoadingError: If the model is missing, has another vocabulary, or needs `trust_remote_code`.
    """
    from transformers import AutoTokenizer
    from trl.trainer.utils import create_model_from_path

    option = "teacher_model_name_or_path"
    path = resolve_model(name, option)
    with unsharded_loading(), loading_errors(option, name):
        model = create_model_from_path(path, dtype=dtype, trust_remote_code=trust_remote_code)
        vocabulary = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code).get_vocab()
    if differing := vocabulary.items() ^ tokenizer_of(processing_class).get_vocab().items():
        raise LoadingError(
            f"{option}: {name} has another vocabulary than the policy ({len(differing)} entries differ), so it cannot "
            "score the policy's tokens"
        )
    return model.eval().requires_grad_(False)


def freeze_vision_tower(model: nn.Module) -> None:
    """Turn off gradients of the vision tower."""
    frozen = [p for name, p in model.named_parameters() if VISION_TOWERS & set(name.split("."))]
    if not frozen:
        names = " or ".join(sorted(VISION_TOWERS))
        raise ValueError(f"freeze_vision_tower: {type(model).__name__} has no module named {names}")
    for parameter in frozen:
        parameter.requires_grad_(False)
