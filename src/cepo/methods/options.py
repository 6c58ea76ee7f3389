"""Groups of options that methods share. A method's options inherit the groups that its stages use."""

from dataclasses import dataclass
from typing import Any, Literal

from ..credit import Schedule, evidence_coefficient
from ..references.hint_content import HintContent, NegativeContent, Part, PositiveContent
from ..references.hints import DEFAULT_HINT_TEMPLATE, fill_hint, require_placeholder
from ..references.negatives import DEFAULT_RULE, NegativeRule
from .method import MethodOptions
from .option_fields import option

MissingNegative = Literal["student", "uniform"]
TeacherSource = Literal["policy", "initial", "synced", "ema"]
Divergence = Literal["full", "top_k", "sampled"]


@dataclass(kw_only=True)
class CoefficientOptions(MethodOptions):
    """The strength of evidence, without a schedule."""

    evidence_coefficient: float = option(
        0.5,
        "lambda_0: share of a token's advantage that evidence redistributes at step 0 (paper, step 7).",
        group="schedule",
        bounds={">=": 0, "<=": 1},
    )

    def coefficient_at(self, step: int) -> float:  # noqa: ARG002
        return self.evidence_coefficient


@dataclass(kw_only=True)
class ScheduleOptions(CoefficientOptions):
    """The strength of evidence and its schedule."""

    evidence_steps: int = option(
        25,
        "T_warm: optimizer steps over which lambda falls to 0; from then on training is GRPO and no rollout is scored "
        "(paper, step 7).",
        group="schedule",
        bounds={">=": 0},
    )
    evidence_schedule: Schedule = option(
        "linear",
        "Schedule of lambda: linear (the paper), cosine, or constant until evidence_steps.",
        group="schedule",
    )

    def coefficient_at(self, step: int) -> float:
        return evidence_coefficient(
            step, initial=self.evidence_coefficient, steps=self.evidence_steps, schedule=self.evidence_schedule
        )


@dataclass(kw_only=True)
class ClipOptions(MethodOptions):
    """The clip of evidence weights."""

    evidence_clip: float = option(
        0.5,
        "eps_w: weights lie within 1 - eps_w and 1 + eps_w, so that no token changes the sign of its rollout's "
        "advantage (paper, step 5).",
        group="schedule",
        bounds={">": 0, "<": 1},
    )


@dataclass(kw_only=True)
class TemplateOptions(MethodOptions):
    """The wording of hints."""

    hint_template: str = option(
        DEFAULT_HINT_TEMPLATE,
        "Text at the end of the last user turn of a teacher's prompt, the same for r+ and r-; must contain {answer}.",
        group="hints",
    )

    def __post_init__(self):
        super().__post_init__()
        require_placeholder(self.hint_template)

    def hint(self, reference: str) -> str:
        return fill_hint(self.hint_template, reference)


@dataclass(kw_only=True)
class HintOptions(TemplateOptions):
    """The wording of hints, and the content of hints with r+."""

    positive_content: PositiveContent = option(
        "answer",
        "Content of a hint with r+: the answer, the solution column, or another correct rollout of the group.",
        group="hints",
    )
    positive_part: Part = option(
        "whole", "Part of the solution or rollout in a hint with r+: whole, prefix or suffix.", group="hints"
    )
    hint_max_tokens: int = option(64, "Length of that prefix or suffix [tokens].", group="hints", bounds={">=": 1})

    def hint_content(self) -> HintContent:
        return HintContent(
            positive=self.positive_content, positive_part=self.positive_part, tokens=self.hint_max_tokens
        )


@dataclass(kw_only=True)
class MixtureOptions(MethodOptions):
    """The number of negatives."""

    max_negatives: int = option(
        2,
        "K: most incorrect answers, or rollouts, in a mixture; each adds one scoring pass (experiments/credit.md has "
        "quality by K).",
        group="references",
        bounds={">=": 1},
    )


@dataclass(kw_only=True)
class ContrastOptions(HintOptions, MixtureOptions):
    """Hints with r+ and with r-, for `correct_and_incorrect_answers`."""

    negative_reference: NegativeRule = option(
        DEFAULT_RULE,
        "Rule for r-: lowest_reward (the paper), most_common, own, mixture or own_or_mixture (experiments/credit.md "
        "compares them).",
        group="references",
    )
    missing_negative: MissingNegative = option(
        "student",
        "Without a usable r-: student scores without a hint in its place, which is RLSD (paper, step 2); uniform keeps "
        "the rollout's advantage, which is GRPO.",
        group="references",
    )
    negative_content: NegativeContent = option(
        "answer",
        "Content of a hint with r-: the answer, or another rejected rollout that ends in it.",
        group="hints",
    )
    negative_part: Part = option(
        "whole", "Part of the rollout in a hint with r-: whole, prefix or suffix.", group="hints"
    )

    def hint_content(self) -> HintContent:
        return HintContent(
            self.positive_content,
            self.negative_content,
            self.positive_part,
            self.negative_part,
            self.hint_max_tokens,
        )


@dataclass(kw_only=True)
class TeacherOptions(MethodOptions):
    """The weights of teachers."""

    teacher: TeacherSource = option(
        "policy",
        "Weights of teachers: policy, the current ones; initial, those of step 0; synced, a copy made every "
        "teacher_sync_steps; ema, a moving average.",
        group="teacher",
    )
    teacher_sync_steps: int = option(
        10, "Optimizer steps between copies, for teacher synced.", group="teacher", bounds={">=": 1}
    )
    teacher_ema_decay: float = option(
        0.999, "Decay of the moving average, for teacher ema.", group="teacher", bounds={">=": 0, "<": 1}
    )


@dataclass(kw_only=True)
class OtherModelOptions(MethodOptions):
    """Another model as the teacher."""

    teacher_model_name_or_path: str = option(
        "",
        "Another model that scores the rollouts: a folder or a name on the Hub; it must have the policy's vocabulary.",
        group="teacher",
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.teacher_model_name_or_path:
            raise ValueError(
                f"method {self.method!r} needs teacher_model_name_or_path, a model with the policy's vocabulary"
            )


@dataclass(kw_only=True)
class FirstErrorOptions(MethodOptions):
    """First-error positions from a reward function."""

    first_error_reward: str | None = option(
        None,
        "Name of a reward function that returns the number of tokens before a rollout's first error, or None; its "
        "weight in reward_weights must be 0. None: the token labels of the task.",
        group="run",
    )


# TRL's options without effect on a divergence over the vocabulary, each with its defaults.
_UNUSED: dict[str, tuple[Any, ...]] = {
    "beta": (0,),
    "loss_type": ("dapo",),  # the mean over tokens, as in the divergence
    "entropy_coef": (0,),
    "use_adaptive_entropy": (False,),
    "top_entropy_quantile": (1,),
    "cast_lm_head_to_fp32": (False,),
    "delta": (None,),
    "off_policy_mask_threshold": (None,),
    "importance_sampling_level": ("token",),
    "epsilon": (0.2,),
    "epsilon_high": (None, 0.2, 0.28),
    "scale_rewards": ("group", True),
    "multi_objective_aggregation": ("sum_then_normalize",),
}


@dataclass(kw_only=True)
class DivergenceOptions(MethodOptions):
    """The divergence between student and teacher, as the loss."""

    divergence: Divergence = option(
        "full",
        "full: over the vocabulary; top_k: over the student's top_k tokens and the rest as one; sampled: a policy "
        "gradient with log P_T - log P_S as token advantages in TRL's GRPO loss, without divergence_beta and "
        "importance_clip.",
        group="distillation",
    )
    divergence_beta: float = option(
        0.0,
        "0: forward KL; 1: reverse KL; between: Jensen-Shannon.",
        group="distillation",
        bounds={">=": 0, "<=": 1},
    )
    divergence_top_k: int = option(
        100, "Number of tokens that top_k compares one by one.", group="distillation", bounds={">=": 1}
    )
    importance_clip: float | None = option(
        None,
        "Largest importance ratio (new over old probability) that weights a token's divergence, where a batch serves "
        "several optimizer steps; None: not weighted.",
        group="distillation",
        bounds={">=": 1},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.negative_advantage_weight != 1:
            raise ValueError(
                f"method {self.method!r} does not use advantages, so negative_advantage_weight has no effect; leave it "
                "out"
            )

    @property
    def uses_divergence_loss(self) -> bool:
        return self.divergence != "sampled"

    def config_problem(self, config: Any) -> str | None:
        if not self.uses_divergence_loss:
            return None
        names = ", ".join(name for name, defaults in _UNUSED.items() if getattr(config, name) not in defaults)
        return f"its loss is a divergence, in which {names} would have no effect; leave it out" if names else None


def token_mean_problem(config: Any) -> str | None:
    """For methods whose loss is a mean over all tokens: why `loss_type` is not one; None if it is."""
    if config.loss_type not in ("grpo", "sapo", "luspo"):
        return None
    return (
        f"its loss is a mean over all tokens, which loss_type={config.loss_type!r} is not; leave it out, or use dapo, "
        "bnpo, dr_grpo, cispo or vespo"
    )
