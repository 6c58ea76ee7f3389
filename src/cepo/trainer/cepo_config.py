"""The options of `CEPOTrainer`: TRL's GRPO options and those of the methods."""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from trl import GRPOConfig

from .. import tasks  # noqa: F401  # registers its methods
from ..methods.kinds import check_types
from ..methods.options import DEFAULTED, MethodOptions, default_text, preset_options
from ..methods.shared_options import Help, option
from .trl_options import generation_kwargs_problem

SharedPrompt = Literal["auto", "always", "never"]
_COUNTS = (
    *("num_generations", "per_device_train_batch_size", "gradient_accumulation_steps", "num_iterations"),
    *("steps_per_generation", "generation_batch_size", "max_completion_length"),
)


@dataclass
class CEPOConfig(MethodOptions, GRPOConfig):
    r"""
    Configuration of [`CEPOTrainer`]: every option of TRL's [`GRPOConfig`], and the ones below.

    The defaults are those of the paper (arXiv 2605.19436), `epsilon_high=0.28` (asymmetric PPO clip 0.2 / 0.28) and
    TRL's `beta=0.0` (no KL) among them, but for `negative_reference`; `CEPOConfig.preset("paper")` has that too. An
    option that the chosen method does not read is refused if it is given, and None if it is not.

    Raises:
        ValueError: For an unknown method, an option that it does not read, or a value out of range.
    """

    correctness_reward: str | None = option(
        "run", "Name of the reward function that decides whether a rollout is right.", follows="the first"
    )
    correctness_threshold: float = option(
        "run",
        "A rollout is right if that reward is at least this, and wrong if it is below; where the function returns None "
        "it is neither.",
        0.5,
    )
    shared_prompt: SharedPrompt = option(
        "teacher",
        "Whether teachers run a prompt once for all of its contexts and rollouts: auto, where the model's cache can be "
        "branched and a trial on the first batch gives the log-probs of plain concatenation; always; or never.",
        "auto",
    )
    shared_prompt_update: SharedPrompt = option(
        "run",
        "Whether sampling, and the policy's own passes, those of the update among them, run a prompt once for all "
        "of its rollouts, and micro-batches of one optimiser step keep groups together: auto, where that gives TRL's "
        "numbers but for rounding, which a trial on the first batch shows; always; or never, which is TRL to the bit.",
        "auto",
    )
    teacher_batch_tokens: int | None = option(
        "teacher",
        "The most tokens that a teacher's forward pass holds: its rows times (cached + run) tokens, padding included.",
        follows="those of a micro-batch of the update",
    )
    skip_zero_advantage: bool | None = option(
        "run",
        "Leave rollouts without any token advantage, and padding after the longest completion, out of the update; the "
        "gradient is the same but for rounding, entropy and clip ratios are those of the rollouts that are left.",
        follows="true but for grpo, where it is exact: no beta, entropy bonus, top_entropy_quantile, router loss",
    )
    credit_page_steps: int = option(
        "run",
        "Every so many optimiser steps, write a page of two groups' rollouts, every token with its credit under each "
        "method, to credit/ in the output directory; 0: never. Its passes come on top of the method's.",
        0,
    )
    freeze_vision_tower: bool = option(
        "run", "Leave the weights of a vision-language model's vision tower as they are.", False
    )
    max_nonfinite_grad_steps: int = option(
        "run",
        "The run stops when the gradients of so many optimiser steps in a row were not finite; each of these steps is "
        "skipped, and counted in cepo/skipped_steps.",
        3,
    )
    epsilon_high: float | None = option("run", "Upper epsilon of the PPO clip; the paper's is 0.28.", 0.28)

    def __post_init__(self):
        check_types(CEPOConfig, {name: getattr(self, name) for name in CEPOConfig.__annotations__})
        self._refuse_less_than_one()
        self.resolve()
        for name in ("shared_prompt", "shared_prompt_update"):
            if getattr(self, name) not in get_args(SharedPrompt):
                choices = ", ".join(get_args(SharedPrompt))
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; choose one of {choices}")
        if self.teacher_batch_tokens is not None and self.teacher_batch_tokens < 1:
            raise ValueError(f"teacher_batch_tokens must be at least 1, got {self.teacher_batch_tokens}")
        if self.max_nonfinite_grad_steps < 1:
            raise ValueError(f"max_nonfinite_grad_steps must be at least 1, got {self.max_nonfinite_grad_steps}")
        if self.credit_page_steps < 0:
            raise ValueError(f"credit_page_steps must not be negative, got {self.credit_page_steps}")
        if getattr(self, "bf16", None) is None and (self.use_cpu or not torch.accelerator.is_available()):
            # TRL's default is bf16 everywhere; transformers refuses that on a CPU.
            self.bf16 = False
        GRPOConfig.__post_init__(self)
        self._refuse_what_would_do_nothing()
        self._refuse_generation_kwargs()
        self._refuse_other_means()
        self._refuse_sequence_level()
        if self.skip_zero_advantage:
            self.require_skipping(self.why_no_skipping())

    def _refuse_less_than_one(self) -> None:
        """TRL divides by these."""
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number from 1 on, got {value!r}")

    def _refuse_generation_kwargs(self) -> None:
        """Keys that change where a completion ends or what its tokens are, without TRL's mask and loss knowing it."""
        problem = generation_kwargs_problem(self.generation_kwargs or {}, vars(self))
        if problem is not None:
            raise ValueError(f"generation_kwargs: {problem}")

    def _refuse_other_means(self) -> None:
        """A weight in a mean over all tokens says nothing in a mean over each rollout's."""
        if self.method_spec.has_loss_weights and self.loss_type in ("grpo", "sapo", "luspo"):
            raise ValueError(
                f"method={self.method!r} weighs tokens in one mean over all of them, which "
                f"loss_type={self.loss_type!r} does not take; leave it out, or take dapo, bnpo, dr_grpo, cispo or vespo"
            )

    def _refuse_sequence_level(self) -> None:
        """A sequence's ratio has the mean of its tokens' gradients: only the mean advantage would reach the policy."""
        if self.importance_sampling_level == "sequence" and self.method_spec.changes_advantages:
            raise ValueError(
                f"method={self.method!r} gives tokens advantages of their own, of which only the mean would count at "
                "importance_sampling_level='sequence'; take 'token'"
            )

    def _refuse_what_would_do_nothing(self) -> None:
        """A divergence over the vocabulary is a loss of its own."""
        if not self.uses_divergence_loss:
            return
        foreign = {
            "beta": self.beta != 0,
            "loss_type": self.loss_type != "dapo",  # the mean over tokens, as there
            "entropy_coef": self.entropy_coef != 0,
            "use_adaptive_entropy": self.use_adaptive_entropy,
            "top_entropy_quantile": self.top_entropy_quantile < 1,
            "cast_lm_head_to_fp32": self.cast_lm_head_to_fp32,
            "delta": self.delta is not None,
            "off_policy_mask_threshold": self.off_policy_mask_threshold is not None,
            "importance_sampling_level": self.importance_sampling_level != "token",
            "epsilon": self.epsilon != 0.2,
            "epsilon_high": self.epsilon_high not in (None, self.epsilon, 0.28),
            "scale_rewards": self.scale_rewards not in ("group", True),
            "multi_objective_aggregation": self.multi_objective_aggregation != "sum_then_normalize",
        }
        names = [name for name, given in foreign.items() if given]
        if names:
            raise ValueError(
                f"method={self.method!r} has a loss of its own, in which {', '.join(names)} would do nothing; "
                "leave it out"
            )

    def why_no_skipping(self) -> str | None:
        """What gives rollouts with zero advantage a gradient, or a part in that of others; None if no option does."""
        if self.beta != 0:
            return f"beta={self.beta}: the KL term has a gradient for every rollout"
        if self.entropy_coef != 0 or self.use_adaptive_entropy:
            return "the entropy bonus has a gradient for every rollout"
        if self.top_entropy_quantile < 1:
            return f"top_entropy_quantile={self.top_entropy_quantile} ranks the tokens of all rollouts"
        return None

    @property
    def skips(self) -> bool:
        """Whether the update leaves out rollouts without token advantages, as far as options decide that."""
        if self.method_spec.distils:  # which has no advantages
            return False
        if self.skip_zero_advantage is None:
            return self.method != "grpo" and self.why_no_skipping() is None
        return self.skip_zero_advantage

    @staticmethod
    def require_skipping(reason: str | None) -> None:
        """Refuse `skip_zero_advantage` for a reason.

        Raises:
            ValueError: If there is one.
        """
        if reason is not None:
            raise ValueError(
                f"skip_zero_advantage would change the gradient: {reason}. Leave it out, or set it to False"
            )

    @classmethod
    def preset(cls, name: str, **options: Any) -> "CEPOConfig":
        """A configuration with the values of a preset, over which `options` win.

        Args:
            name: Of a method's preset: ``paper``, every option of CEPO as the paper has it; ``rlsd``, RLSD as its own
                paper has it.
            options: Any options of `CEPOConfig`; with a `method` of their own, what it does not read is left out.

        Raises:
            ValueError: If there is no such preset.
        """
        return cls(**{**preset_options(name, options.get("method")), **options})


def own_options() -> dict[str, tuple[str, str, str]]:
    """For each of our options: its group, what it is, and its default in words."""
    found = {}
    for one in fields(CEPOConfig):
        if isinstance(known := one.metadata.get("help"), Help):
            text = default_text(one.name) if one.name in DEFAULTED else str(one.default)
            text = known.follows if text.lower() == "none" else text
            found[one.name] = (known.group, str(known), text)
    return found


def _document() -> None:
    """Every option with its default into the class's docstring, from the one place where it is said."""
    types = {one.name: getattr(one.type, "__name__", str(one.type)) for one in fields(CEPOConfig)}
    lines = [
        f"        {name} (`{types[name]}`, *optional*, defaults to `{default}`):\n            {text}"
        for name, (_, text, default) in own_options().items()
    ]
    head, raises = (CEPOConfig.__doc__ or "").split("    Raises:")
    CEPOConfig.__doc__ = f"{head}    Args:\n" + "\n".join(lines) + f"\n\n    Raises:{raises}"


_document()
