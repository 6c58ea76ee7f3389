"""The options of `CEPOTrainer`: TRL's GRPO options, those of all methods, and those of a run."""

import inspect
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from trl import GRPOConfig

from .. import tasks  # noqa: F401  # registers its methods
from ..methods.method import Method, MethodOptions
from ..methods.option_fields import OptionField, option_fields
from ..methods.options import DivergenceOptions
from ..methods.registry import all_options, default_text, find_method, preset_options
from .generation_kwargs import generation_kwargs_problem

SharedPrompt = Literal["auto", "always", "never"]
# Smallest values of counts; TRL divides by most of them.
_SMALLEST = {
    **dict.fromkeys(("num_generations", "per_device_train_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("num_iterations", "steps_per_generation", "generation_batch_size", "max_completion_length"), 1),
    **{"teacher_batch_tokens": 1, "max_nonfinite_grad_steps": 1, "credit_page_steps": 0},
}


def _config_fields(options: dict[str, OptionField]) -> list[tuple[str, Any, Any]]:
    """Options of methods as fields of a configuration, with None for the method's default."""
    return [(name, one.type | None, field(default=None, metadata={"help": one.help})) for name, one in options.items()]


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


_METHOD_OPTIONS = all_options()
_MethodFields: Any = make_dataclass("_MethodFields", _config_fields(_METHOD_OPTIONS))


@dataclass
class CEPOConfig(_MethodFields, GRPOConfig):
    r"""
    Configuration of [`CEPOTrainer`]: every option of TRL's [`GRPOConfig`], and the ones below.

    The defaults are those of the paper (arXiv 2605.19436), with `epsilon_high=0.28` (asymmetric PPO clip 0.2 / 0.28)
    and TRL's `beta=0.0` (no KL), except `negative_reference`; `CEPOConfig.preset("paper")` has the paper's rule too.

    None stands for the method's default in an option of a method. Options that the chosen method does not have are
    refused if given, and stay None. `config_class` makes the configuration class of a method with further options.

    Attributes:
        given: The options of the method that were given, with `method`.

    Raises:
        ValueError: For an unknown method, an option that it does not have, or a value out of range.
    """

    method_option_names: ClassVar[tuple[str, ...]] = tuple(_METHOD_OPTIONS)

    method: str = _option("cepo", "Method: a name, or the import path of your method, package.module:name.")
    correctness_reward: str | None = _option(
        None, "Name of the reward function that decides which rollouts are correct; None: the first one."
    )
    correctness_threshold: float = _option(
        0.5,
        "A rollout is correct if that reward is at least this, and incorrect if it is below; a reward of None gives no "
        "verdict.",
    )
    shared_prompt: SharedPrompt = _option(
        "auto",
        "Whether teachers encode a prompt once for all of its contexts and rollouts: auto, if the model's attention "
        "supports prefix trees and a trial on the first batch reproduces the log-probs of full forward passes; always; "
        "or never.",
    )
    shared_prompt_update: SharedPrompt = _option(
        "auto",
        "Whether sampling and the policy's forward passes, the update's included, encode a prompt once for all of its "
        "rollouts, with groups kept together in micro-batches: auto, if a trial on the first batch reproduces TRL's "
        "numbers up to rounding; always; or never, which is bit-identical to TRL.",
    )
    teacher_batch_tokens: int | None = _option(
        None,
        "Most tokens of a teacher's forward pass, padding included; None: those of a micro-batch of the update.",
    )
    skip_zero_advantage: bool | None = _option(
        None,
        "Leave rollouts without a token advantage, and padding after the longest completion, out of the update. The "
        "gradient is the same up to rounding; entropy and clip ratios are those of the remaining rollouts. None: true "
        "where it is exact (no beta, entropy bonus, top_entropy_quantile, router loss or distillation), but false for "
        "grpo.",
    )
    credit_page_steps: int = _option(
        0,
        "Write a page of two groups, every token with its credit under each method, to credit/ in the output directory "
        "every this many optimizer steps; 0: never. Its forward passes come on top of the method's.",
    )
    freeze_vision_tower: bool = _option(False, "Freeze the vision tower of a vision-language model.")
    max_nonfinite_grad_steps: int = _option(
        3,
        "Stop after this many optimizer steps in a row with non-finite gradients; each is skipped, and counted in "
        "cepo/skipped_steps.",
    )
    epsilon_high: float | None = _option(0.28, "Upper epsilon of the PPO clip; the paper's is 0.28.")

    def __post_init__(self):
        known = option_fields(CEPOConfig)
        for name in _run_option_names():
            known[name].check(getattr(self, name))
        for name, smallest in _SMALLEST.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < smallest):
                raise ValueError(f"{name} must be an integer and at least {smallest}, got {value!r}")
        self._configure_method()
        if getattr(self, "bf16", None) is None and (self.use_cpu or not torch.accelerator.is_available()):
            # TRL's default is bf16 everywhere; transformers refuses that on a CPU.
            self.bf16 = False
        GRPOConfig.__post_init__(self)
        self._check_combinations()

    def _configure_method(self) -> None:
        """Validate the options of the method, and set them to their resolved values, which trackers log."""
        _additional_options(self.method_spec)
        options = {name: value for name in self.method_option_names if (value := getattr(self, name)) is not None}
        self.given: dict[str, Any] = {"method": self.method, **options}
        for name, value in self.method_spec.configure(**options).as_dict().items():
            setattr(self, name, value)

    def _check_combinations(self) -> None:
        problem = self.method_options.config_problem(self)
        if problem is not None:
            raise ValueError(f"method={self.method!r}: {problem}")
        problem = generation_kwargs_problem(self.generation_kwargs or {}, vars(self))
        if problem is not None:
            raise ValueError(f"generation_kwargs: {problem}")
        if self.importance_sampling_level == "sequence" and self.method_spec.changes_advantages:
            raise ValueError(
                f"method={self.method!r}: with importance_sampling_level='sequence' only the mean of a rollout's token "
                "advantages reaches the gradient; set it to 'token'"
            )
        if self.skip_zero_advantage and (reason := self.why_no_skipping()):
            raise ValueError(f"skip_zero_advantage: {reason}; leave it out, or set it to False")

    @property
    def method_spec(self) -> Method:
        """The method."""
        return find_method(self.method)

    @property
    def method_options(self) -> MethodOptions:
        """The options of the method, typed and complete."""
        spec = self.method_spec
        return spec.configure(**{name: getattr(self, name) for name in option_fields(spec.options)})

    @property
    def uses_divergence_loss(self) -> bool:
        """Whether the loss is a divergence over the vocabulary rather than TRL's GRPO loss."""
        return self.method_options.uses_divergence_loss

    def coefficient_at(self, step: int) -> float:
        """lambda at an optimizer step."""
        return self.method_options.coefficient_at(step)

    def why_no_skipping(self) -> str | None:
        """Why rollouts with zero advantage have a part in the gradient; None if they have none."""
        if isinstance(self.method_options, DivergenceOptions):
            return f"method={self.method!r} trains on every rollout"
        if self.beta != 0:
            return f"the KL term (beta={self.beta}) has a gradient for every rollout"
        if self.entropy_coef != 0 or self.use_adaptive_entropy:
            return "the entropy bonus has a gradient for every rollout"
        if self.top_entropy_quantile < 1:
            return f"top_entropy_quantile={self.top_entropy_quantile} ranks the tokens of all rollouts"
        return None

    @property
    def skips(self) -> bool:
        """Whether the update leaves out rollouts without token advantages; a router loss, too, forbids it."""
        if self.skip_zero_advantage is None:
            return self.method_spec.changes_advantages and self.why_no_skipping() is None
        return self.skip_zero_advantage

    @classmethod
    def preset(cls, name: str, **options: Any) -> "CEPOConfig":
        """A configuration with the values of a preset, which `options` override.

        Args:
            name: ``paper``, CEPO as in its paper; ``rlsd``, RLSD as in its paper.
            options: Options of `CEPOConfig`; with another `method`, options that it does not have are left out.

        Raises:
            ValueError: If there is no such preset.
        """
        return cls(**{**preset_options(name, options.get("method")), **options})


def _run_option_names() -> list[str]:
    return [name for name in CEPOConfig.__annotations__ if name != "method_option_names"]


def _additional_options(method: Method) -> dict[str, OptionField]:
    """The options of a method that `CEPOConfig` does not have.

    Raises:
        ValueError: If one has the name of another option.
    """
    names = {one.name for one in fields(CEPOConfig)} - set(CEPOConfig.method_option_names)
    options = option_fields(method.options)
    taken = sorted(names & set(options))
    if taken:
        raise ValueError(f"method {method.name!r}: {taken[0]} is an option of GRPOConfig or CEPOConfig; rename it")
    return {name: one for name, one in options.items() if name not in CEPOConfig.method_option_names}


@cache
def config_class(method: str) -> type[CEPOConfig]:
    """The configuration class with all options of a method: `CEPOConfig`, or a subclass with the further ones.

    Args:
        method: Name or import path.

    Raises:
        ValueError: If there is no such method, or one of its options has the name of another option.
    """
    own = _additional_options(find_method(method))
    if not own:
        return CEPOConfig
    namespace = {
        "method_option_names": (*CEPOConfig.method_option_names, *own),
        # transformers pickles the arguments of a run into its checkpoints.
        "__reduce__": lambda config: (_restored, (method, vars(config))),
    }
    help = option_fields(CEPOConfig)["method"].help
    made_fields = [("method", str, _option(method, help)), *_config_fields(own)]
    return make_dataclass("CEPOConfig", made_fields, bases=(CEPOConfig,), namespace=namespace)


def _restored(method: str, state: dict[str, Any]) -> CEPOConfig:
    config: CEPOConfig = object.__new__(config_class(method))
    config.__dict__.update(state)
    return config


def option_docs() -> dict[str, tuple[str, str, str]]:
    """For each option that `CEPOConfig` adds to TRL's: its group, its help and its default ("" for None)."""
    known = option_fields(CEPOConfig)
    own = {name: (known[name].help, known[name].default) for name in _run_option_names()}
    method = own.pop("method")
    return {
        "method": ("method", *method),
        **{name: (one.group, one.help, default_text(name)) for name, one in _METHOD_OPTIONS.items()},
        **{name: ("run", help, "" if default is None else str(default)) for name, (help, default) in own.items()},
    }


def _document() -> None:
    """Add every option with its default to the docstring of `CEPOConfig`."""
    types = {name: inspect.formatannotation(one.type) for name, one in option_fields(CEPOConfig).items()}
    lines = [
        f"        {name} (`{types[name]}`, *optional*, defaults to `{default or None}`):\n            {text}"
        for name, (_, text, default) in option_docs().items()
    ]
    head, rest = (CEPOConfig.__doc__ or "").split("    Attributes:")
    CEPOConfig.__doc__ = f"{head}    Args:\n" + "\n".join(lines) + f"\n\n    Attributes:{rest}"


_document()
