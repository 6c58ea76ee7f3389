"""The options of `CEPOTrainer`: TRL's GRPO options and those of the method."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from trl import GRPOConfig

from ..credit import Schedule, evidence_coefficient
from ..methods.registry import METHODS
from ..references.choosing import DEFAULT_RULE, NegativeRule
from ..references.contents import NegativeContent, Part, PositiveContent
from ..references.hints import DEFAULT_HINT_TEMPLATE, require_placeholder
from ..scoring.teacher_weights import TeacherSource

NoNegative = Literal["student", "uniform"]

# Where neither the user nor the method says.
_DEFAULTS = {
    "hint_template": DEFAULT_HINT_TEMPLATE,
    "positive_content": "answer",
    "teacher": "policy",
    "teacher_ema_decay": 0.999,
    "divergence": "full",
    "divergence_beta": 0.0,
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "negative_reference": "lowest_reward",
        "no_negative": "student",
        "evidence_coefficient": 0.5,
        "evidence_steps": 25,
        "evidence_schedule": "linear",
        "evidence_clip": 0.5,
        "epsilon": 0.2,
        "epsilon_high": 0.28,
    },
    # arXiv 2604.03128
    "rlsd": {
        "method": "rlsd",
        "evidence_coefficient": 0.5,
        "evidence_steps": 50,
        "evidence_schedule": "linear",
        "evidence_clip": 0.2,
        "teacher": "synced",
        "teacher_sync_steps": 10,
    },
}


def preset_options(name: str) -> dict[str, Any]:
    """The options of a preset.

    Raises:
        ValueError: If `name` is no key of `PRESETS`.
    """
    _require_choice("preset", name, tuple(PRESETS))
    return PRESETS[name]


@dataclass
class CEPOConfig(GRPOConfig):
    r"""
    Configuration of [`CEPOTrainer`]: every option of TRL's [`GRPOConfig`], and these.

    The defaults are those of the paper (arXiv 2605.19436), `epsilon_high=0.28` (asymmetric PPO clip 0.2 / 0.28) and
    TRL's `beta=0.0` (no KL) among them, but for `negative_reference`; `CEPOConfig.preset("paper")` has that too.

    Args:
        method (`str`, *optional*, defaults to `"cepo"`):
            How credit is placed: `"cepo"` (evidence for the right answer against a wrong one), `"rlsd"` (evidence for
            the right answer against none, arXiv 2604.03128) or `"grpo"` (the same advantage for every token,
            arXiv 2402.03300; then the trainer is TRL's `GRPOTrainer` to the bit). Or self-distillation on the policy's
            own rollouts, without advantages: `"opsd"` (from a teacher told the reference solution, arXiv 2601.18734)
            or `"sdpo"` (from one told a right rollout of the group, arXiv 2601.20802). `"oracle"` places credit by the
            figures task's ground truth, where evidence should: at a rollout's own mistakes, and where others made one.
        evidence_coefficient (`float`, *optional*, defaults to `0.5`):
            lambda_0: share of a token's advantage that evidence redistributes at step 0, in [0, 1]. Paper, step 7.
        evidence_steps (`int`, *optional*, defaults to `25`):
            T_warm: optimiser steps over which lambda falls to 0; from then on the method is GRPO and no teacher runs.
            Paper, step 7.
        evidence_schedule (`str`, *optional*, defaults to `"linear"`):
            How lambda falls: `"linear"` (paper), `"cosine"`, or `"constant"` until `evidence_steps`.
        evidence_clip (`float`, *optional*, defaults to `0.5`):
            eps_w: a weight stays within 1 - eps_w and 1 + eps_w; in (0, 1), so that no token changes the sign of its
            rollout's advantage. Paper, step 5.
        negative_reference (`str`, *optional*, defaults to `"own_or_mixture"`):
            Whose answer is r-: `"lowest_reward"` (paper), `"most_common"`, `"own"`, `"mixture"` or
            `"own_or_mixture"`; see [`~cepo.references.choose_references`]. docs/credit.md says why not the paper's.
        max_negatives (`int`, *optional*, defaults to `4`):
            K: the most wrong answers in a mixture, each one teacher pass.
        no_negative (`str`, *optional*, defaults to `"student"`):
            What stands in for the negative teacher where the group has no usable wrong answer: `"student"`, the policy
            without a hint, which is RLSD (paper, step 2), or `"uniform"`, which is GRPO.
        hint_template (`str`, *optional*):
            What is added to the last user turn of a teacher's prompt; the same wording for r+ and r-. Defaults to
            `"\n\nThe correct answer is {answer}."`, and for `"opsd"` and `"sdpo"` to a wording for whole solutions.
        positive_content (`str`, *optional*):
            What stands for r+ in the hint: `"answer"`, the `"solution"` column as it is, or a right `"rollout"` of the
            group other than the one that is read. Defaults to the answer, for `"opsd"` to the solution, for `"sdpo"`
            to a rollout.
        negative_content (`str`, *optional*, defaults to `"answer"`):
            What stands for r-: `"answer"`, or the rejected `"rollout"` that it comes from.
        positive_part (`str`, *optional*, defaults to `"whole"`):
            Of a solution or a rollout that stands for r+: the `"whole"`, or a `"prefix"` or `"suffix"` of it.
        negative_part (`str`, *optional*, defaults to `"whole"`):
            The same of a rollout that stands for r-.
        content_tokens (`int`, *optional*, defaults to `64`):
            Length of that prefix or suffix, in tokens.
        teacher (`str`, *optional*):
            Whose weights teachers read with: `"policy"`, the live ones; `"initial"`, those of step 0; `"synced"`, a
            copy renewed every `teacher_sync_steps`; `"ema"`, a moving average. Defaults to the policy, for `"opsd"` to
            the initial weights, for `"sdpo"` to the moving average.
        teacher_sync_steps (`int`, *optional*, defaults to `10`):
            Optimiser steps between copies, for `teacher="synced"`.
        teacher_ema_decay (`float`, *optional*):
            Share of the average that a step keeps, for `teacher="ema"`, in [0, 1). Defaults to 0.999, as in CEPO's
            paper, and for `"sdpo"` to 0.95, as in its own repository.
        divergence (`str`, *optional*):
            For `"opsd"` and `"sdpo"`: over the `"full"` vocabulary, over the student's `"top_k"` tokens and the rest as
            one, or of the `"sampled"` tokens alone (a policy gradient with log P_T - log P_S as token advantages, in
            TRL's GRPO loss: its clip takes the place of `importance_clip`, `divergence_beta` has no part, and its mean
            is over all tokens, those without a teacher too). Defaults to full for OPSD and to top_k for SDPO.
        divergence_beta (`float`, *optional*):
            0: forward KL; 1: reverse KL; between: Jensen-Shannon. Defaults to 0 for OPSD and to 0.5 for SDPO.
        divergence_top_k (`int`, *optional*, defaults to `100`):
            How many tokens `"top_k"` compares one by one.
        importance_clip (`float`, *optional*):
            The most that the ratio of new to old probability weighs a token's divergence, where a batch serves for
            several steps; none: not weighed. Defaults to 2 for `"sdpo"`.
        correctness_reward (`str`, *optional*):
            Name of the reward function that decides whether a rollout is right. Defaults to the first one.
        correctness_threshold (`float`, *optional*, defaults to `0.5`):
            A rollout is right if that reward is at least this, and wrong if it is below; where the function returns
            None it is neither.
        shared_prompt (`str`, *optional*, defaults to `"auto"`):
            Whether teachers run a prompt once for all of its contexts and rollouts: `"auto"`, where the model's cache
            can be branched and a trial on the first batch gives the log-probs of plain concatenation; `"always"`; or
            `"never"`, every context and rollout whole.
        teacher_batch_tokens (`int`, *optional*):
            The most tokens that a teacher's forward pass holds: its rows times (cached + run) tokens, padding
            included. Defaults to those of one micro-batch of the policy update.
        skip_zero_advantage (`bool`, *optional*):
            Leave rollouts with zero advantage, and padding after the longest completion, out of the policy update;
            the gradient is the same but for rounding. Entropy and clip ratios are then those of the rollouts that are
            left. Defaults to `True` for methods other than `"grpo"` where that is exact: without KL term (`beta`),
            entropy bonus, `top_entropy_quantile` and router loss.
        credit_samples_every (`int`, *optional*, defaults to `0`):
            Every so many optimiser steps, write a page of two groups' rollouts, every token with its credit under each
            method, to `credit/` in the output directory; 0: never. Its teacher passes come on top of the method's.
        freeze_vision_tower (`bool`, *optional*, defaults to `False`):
            Leave the weights of a vision-language model's vision tower as they are.
    """

    method: Literal["cepo", "rlsd", "grpo", "opsd", "sdpo", "oracle"] = field(
        default="cepo", metadata={"help": "How credit is placed: cepo, rlsd, grpo; by self-distillation: opsd, sdpo."}
    )
    evidence_coefficient: float = field(
        default=0.5,
        metadata={"help": "lambda_0: share of a token's advantage that evidence redistributes at step 0, in [0, 1]."},
    )
    evidence_steps: int = field(
        default=25, metadata={"help": "T_warm: optimiser steps over which lambda falls to 0; then the method is GRPO."}
    )
    evidence_schedule: Schedule = field(
        default="linear", metadata={"help": "How lambda falls: linear, cosine, or constant until evidence_steps."}
    )
    evidence_clip: float = field(
        default=0.5, metadata={"help": "eps_w: weights stay within 1 - eps_w and 1 + eps_w; strictly between 0 and 1."}
    )
    negative_reference: NegativeRule = field(
        default=DEFAULT_RULE,
        metadata={"help": "Whose answer is r-: lowest_reward (paper), most_common, own, mixture or own_or_mixture."},
    )
    max_negatives: int = field(
        default=4, metadata={"help": "K: the most wrong answers in a mixture, each one teacher pass."}
    )
    no_negative: NoNegative = field(
        default="student",
        metadata={"help": "Without a usable r-: student (RLSD, the paper's choice) or uniform (GRPO)."},
    )
    hint_template: str = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "Added to the last user turn of a teacher's prompt; must contain {answer}."},
    )
    positive_content: PositiveContent = field(
        default=None,  # type: ignore[arg-type]
        metadata={"help": "What stands for r+ in the hint: answer, solution or rollout."},
    )
    negative_content: NegativeContent = field(
        default="answer", metadata={"help": "What stands for r- in the hint: answer or rollout."}
    )
    positive_part: Part = field(
        default="whole", metadata={"help": "Of a solution or rollout that stands for r+: whole, prefix or suffix."}
    )
    negative_part: Part = field(
        default="whole", metadata={"help": "Of a rollout that stands for r-: whole, prefix or suffix."}
    )
    content_tokens: int = field(default=64, metadata={"help": "Length of that prefix or suffix, in tokens."})
    teacher: TeacherSource = field(
        default=None,  # type: ignore[arg-type]
        metadata={"help": "Whose weights teachers read with: policy, initial, synced or ema."},
    )
    teacher_sync_steps: int = field(
        default=10, metadata={"help": "Optimiser steps between copies, for a synced teacher."}
    )
    teacher_ema_decay: float = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "Share of the moving average that a step keeps, for an ema teacher: 0.999; sdpo: 0.95."},
    )
    divergence: Literal["full", "top_k", "sampled"] = field(
        default=None,  # type: ignore[arg-type]
        metadata={"help": "For opsd and sdpo: full, top_k or sampled. Default: full, and top_k for sdpo."},
    )
    divergence_beta: float = field(
        default=None,  # type: ignore[assignment]
        metadata={"help": "0: forward KL, 1: reverse KL, between: Jensen-Shannon. Default: 0; sdpo: 0.5."},
    )
    divergence_top_k: int = field(default=100, metadata={"help": "Tokens that top_k compares one by one."})
    importance_clip: float | None = field(
        default=None, metadata={"help": "Most that the probability ratio weighs a token's divergence; sdpo: 2."}
    )
    correctness_reward: str | None = field(
        default=None,
        metadata={"help": "Name of the reward function that decides whether a rollout is right; default: the first."},
    )
    correctness_threshold: float = field(
        default=0.5, metadata={"help": "A rollout is right if its correctness reward is at least this."}
    )
    shared_prompt: Literal["auto", "always", "never"] = field(
        default="auto",
        metadata={"help": "Teachers run a prompt once for all contexts and rollouts: auto, always, never."},
    )
    teacher_batch_tokens: int | None = field(
        default=None,
        metadata={"help": "Most tokens in a teacher's forward pass; default: those of a micro-batch of the update."},
    )
    skip_zero_advantage: bool | None = field(
        default=None,
        metadata={"help": "Leave rollouts with zero advantage out of the update; default: yes but for grpo, if exact."},
    )
    credit_samples_every: int = field(
        default=0, metadata={"help": "Every so many steps, write a page of a few rollouts' credit; 0: never."}
    )
    freeze_vision_tower: bool = field(
        default=False, metadata={"help": "Leave the weights of a vision-language model's vision tower as they are."}
    )

    # The paper's PPO clip is 0.2 / 0.28.
    epsilon_high: float | None = field(
        default=0.28, metadata={"help": "Upper epsilon of the PPO clip. The paper's is 0.28."}
    )

    def __post_init__(self):
        _require_choice("method", self.method, tuple(METHODS))
        for name, value in {**_DEFAULTS, **METHODS[self.method].defaults}.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        _require_choice("positive_content", self.positive_content, get_args(PositiveContent))
        _require_choice("negative_content", self.negative_content, get_args(NegativeContent))
        _require_choice("positive_part", self.positive_part, get_args(Part))
        _require_choice("negative_part", self.negative_part, get_args(Part))
        _require_choice("teacher", self.teacher, get_args(TeacherSource))
        _require_choice("divergence", self.divergence, ("full", "top_k", "sampled"))
        if not 0 <= self.divergence_beta <= 1:
            raise ValueError(f"divergence_beta must lie in [0, 1], got {self.divergence_beta}")
        if not 0 <= self.teacher_ema_decay < 1:
            raise ValueError(f"teacher_ema_decay must lie in [0, 1), got {self.teacher_ema_decay}")
        for name in ("teacher_sync_steps", "content_tokens", "divergence_top_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.importance_clip is not None and self.importance_clip < 1:
            raise ValueError(f"importance_clip must be at least 1, got {self.importance_clip}")
        _require_choice("evidence_schedule", self.evidence_schedule, get_args(Schedule))
        _require_choice("negative_reference", self.negative_reference, get_args(NegativeRule))
        _require_choice("no_negative", self.no_negative, get_args(NoNegative))
        _require_choice("shared_prompt", self.shared_prompt, ("auto", "always", "never"))
        if self.teacher_batch_tokens is not None and self.teacher_batch_tokens < 1:
            raise ValueError(f"teacher_batch_tokens must be at least 1, got {self.teacher_batch_tokens}")
        if self.credit_samples_every < 0:
            raise ValueError(f"credit_samples_every must not be negative, got {self.credit_samples_every}")
        if not 0 < self.evidence_clip < 1:
            raise ValueError(f"evidence_clip (eps_w) must lie strictly between 0 and 1, got {self.evidence_clip}")
        if not 0 <= self.evidence_coefficient <= 1:
            raise ValueError(f"evidence_coefficient (lambda_0) must lie in [0, 1], got {self.evidence_coefficient}")
        if self.evidence_steps < 0:
            raise ValueError(f"evidence_steps (T_warm) must not be negative, got {self.evidence_steps}")
        if self.max_negatives < 1:
            raise ValueError(f"max_negatives (K) must be at least 1, got {self.max_negatives}")
        require_placeholder(self.hint_template)
        if getattr(self, "bf16", None) is None and (self.use_cpu or not torch.accelerator.is_available()):
            # TRL's default is bf16 everywhere; transformers refuses that on a CPU.
            self.bf16 = False
        super().__post_init__()
        self._refuse_what_would_do_nothing()
        if self.skip_zero_advantage:
            self.require_skipping(self.why_no_skipping())

    def _refuse_what_would_do_nothing(self) -> None:
        """A divergence over the vocabulary is a loss of its own."""
        if not METHODS[self.method].distils or self.divergence == "sampled":
            return
        foreign = {
            "beta": self.beta != 0,
            "loss_type": self.loss_type != "dapo",  # the mean over tokens, as there
            "entropy_coef": self.entropy_coef != 0 or self.use_adaptive_entropy,
            "top_entropy_quantile": self.top_entropy_quantile < 1,
            "cast_lm_head_to_fp32": self.cast_lm_head_to_fp32,
            "delta": self.delta is not None,
            "off_policy_mask_threshold": self.off_policy_mask_threshold is not None,
            "importance_sampling_level": self.importance_sampling_level != "token",
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
        """Whether the update leaves out rollouts with zero advantage, as far as options decide that."""
        if METHODS[self.method].distils:  # which has no advantages
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
            name: A key of `PRESETS`: ``paper``, every option of the method as the paper has it; ``rlsd``, RLSD as its
                own paper has it.
            options: Any options of `CEPOConfig`.

        Raises:
            ValueError: If there is no such preset.
        """
        return cls(**{**preset_options(name), **options})

    def coefficient_at(self, step: int) -> float:
        """lambda at an optimiser step."""
        return evidence_coefficient(
            step,
            initial=self.evidence_coefficient,
            steps=self.evidence_steps,
            schedule=self.evidence_schedule,
        )


def _require_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {option} {value!r}; choose one of {', '.join(choices)}")
