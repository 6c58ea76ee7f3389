"""Models and batches with which a method would not do what its name says; refused before training."""

from accelerate.utils import is_peft_model
from trl import GRPOTrainer

from ..data.adapters import adapts_tied_embeddings
from .cepo_config import CEPOConfig


def check_adapters(trainer: GRPOTrainer, method: str) -> None:
    """Refuse adapters that are no part of the weights: a teacher's log-probs would be those of another model.

    Raises:
        ValueError: Naming them and what to use in their place.
    """
    configs = getattr(trainer.model, "peft_config", {})
    kinds = sorted({str(getattr(c.peft_type, "value", c.peft_type)) for c in configs.values() if c.is_prompt_learning})
    if kinds:
        raise ValueError(
            f"method={method!r} reads rollouts again with other prompts, which {', '.join(kinds)} does not allow: it "
            "puts tokens of its own before each prompt. Use LoRA, or method='grpo'"
        )


def check_vllm_weights(trainer: GRPOTrainer) -> None:
    """Refuse adapters with which vLLM would sample from another model.

    TRL adds adapters to the weights that vLLM gets, and an embedding and a head that are tied share one weight.

    Raises:
        ValueError: Naming the options and the fix.
    """
    if trainer.args.use_vllm and is_peft_model(trainer.model) and adapts_tied_embeddings(trainer.model):
        raise ValueError(
            "use_vllm: adapters change the embedding or the LM head, which are tied in this model, and vLLM would get "
            "one weight for both; leave them out of target_modules and modules_to_save (lora_target_modules, "
            "lora_modules_to_save), or set use_vllm to False"
        )


def check_whole_groups(args: CEPOConfig, processes: int) -> None:
    """Refuse to cut groups for a method that asks what is known of whole ones.

    Raises:
        ValueError: Naming the method and the option.
    """
    if args.method_spec.token_values is not None and args.generation_batch_size // processes % args.num_generations:
        raise ValueError(
            f"method={args.method!r} needs whole groups on each process; make the batch of a process a multiple of "
            "num_generations"
        )


def check_distillation(trainer: GRPOTrainer, method: str) -> None:
    """Refuse models with which a divergence over the vocabulary does not work.

    Raises:
        ValueError: Naming the method and the option.
    """
    if trainer.aux_loss_enabled:
        raise ValueError(
            f"method={method!r} has a loss of its own, in which router_aux_loss_coef would do nothing; set it to 0"
        )
