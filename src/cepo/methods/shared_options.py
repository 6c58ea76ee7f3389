"""The options that methods share, as the stages of a method read them. `MethodOptions` resolves and checks them."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ..credit import Schedule
from ..references.hint_content import HintContent, NegativeContent, Part, PositiveContent
from ..references.negatives import NegativeRule

MissingNegative = Literal["student", "uniform"]
TeacherSource = Literal["policy", "initial", "synced", "ema"]
Divergence = Literal["full", "top_k", "sampled"]

GROUPS = {
    "method": "the method",
    "schedule": "its strength and schedule",
    "references": "references",
    "hints": "hints",
    "teacher": "teachers",
    "distillation": "distillation",
    "run": "the run",
}


class Help(str):
    """What an option is, its group, and what follows where it is None: metadata of its own would be argparse's."""

    group: str
    follows: str


def option(group: str, text: str, default: Any = None, *, follows: str = "none") -> Any:
    """A field of an options dataclass: its group and what it is, with the source where there is one."""
    known = Help(text)
    known.group, known.follows = group, follows
    return field(default=default, metadata={"help": known})


@dataclass
class SharedOptions:
    """What the stages of a method read. An option that the chosen method does not read is None."""

    method: str = option(
        "method",
        "How credit is placed: a name, or the import path of a method of your own, package.module:name.",
        "cepo",
    )
    method_kwargs: dict[str, Any] | str | None = option(
        "method",
        "The method's own constants, as JSON; docs/methods.md lists them.",
        follows="as docs/methods.md has them",
    )
    negative_advantage_weight: float | None = option(
        "method",
        "Factor on the token advantages of rollouts with A < 0. 0.05 with method grpo is the boring control of every "
        "comparison; at 0 such rollouts are neither read nor trained on.",
    )
    answer_extractor: str = option(
        "references",
        "How answers are read, in completions and solutions alike: auto, the last box, <answer> tag or #### line, else "
        "what a sentence announces; boxed, tag, gsm8k, sentence: that form alone; or the import path of a function "
        "that is given a text and returns the answer, or None.",
        "auto",
    )
    evidence_coefficient: float | None = option(
        "schedule",
        "lambda_0: share of a token's advantage that evidence redistributes at step 0, in [0, 1] (paper, step 7).",
    )
    evidence_steps: int | None = option(
        "schedule",
        "T_warm: optimiser steps over which lambda falls to 0; from then on the method is GRPO and no teacher runs "
        "(paper, step 7).",
    )
    evidence_schedule: Schedule | None = option(
        "schedule", "How lambda falls: linear (the paper), cosine, or constant until evidence_steps."
    )
    evidence_clip: float | None = option(
        "schedule",
        "eps_w: weights stay within 1 - eps_w and 1 + eps_w; strictly between 0 and 1, so that no token changes the "
        "sign of its rollout's advantage (paper, step 5).",
    )
    negative_reference: NegativeRule | None = option(
        "references",
        "Whose answer is r-: lowest_reward (the paper), most_common, own, mixture or own_or_mixture "
        "(experiments/credit.md says why not the paper's).",
    )
    max_negatives: int | None = option(
        "references", "K: the most wrong answers, or rollouts, in a mixture; each is one teacher pass."
    )
    missing_negative: MissingNegative | None = option(
        "references",
        "Without a usable r-: student, the policy without a hint takes its place, which is RLSD (paper, step 2); or "
        "uniform, which is GRPO.",
    )
    hint_template: str | None = option(
        "hints",
        "What a teacher reads at the end of the last user turn, the same wording for r+ and r-; must contain {answer}.",
    )
    positive_content: PositiveContent | None = option(
        "hints",
        "What stands for r+ in the hint: the answer, the solution column as it is, or another right rollout of the "
        "group.",
    )
    negative_content: NegativeContent | None = option(
        "hints",
        "What stands for r-: the answer, or the rejected rollout that ends in it, other than the one that is read.",
    )
    positive_part: Part | None = option(
        "hints", "Of a solution or rollout that stands for r+: the whole, or a prefix or suffix of it."
    )
    negative_part: Part | None = option("hints", "The same of a rollout that stands for r-.")
    hint_max_tokens: int | None = option("hints", "Length of that prefix or suffix, in tokens.")
    teacher: TeacherSource | None = option(
        "teacher",
        "Whose weights teachers have: policy, the live ones; initial, those of step 0; synced, a copy renewed every "
        "teacher_sync_steps; ema, a moving average.",
    )
    teacher_sync_steps: int | None = option("teacher", "Optimiser steps between copies, for teacher synced.")
    teacher_ema_decay: float | None = option(
        "teacher", "Share of the moving average that a step keeps, for teacher ema, in [0, 1)."
    )
    teacher_model_name_or_path: str | None = option(
        "teacher",
        "Another model that reads the rollouts: a folder or a name on the Hub; it must have the policy's vocabulary.",
    )
    divergence: Divergence | None = option(
        "distillation",
        "Over the full vocabulary, over the student's top_k tokens and the rest as one, or of the sampled tokens "
        "alone: a policy gradient with log P_T - log P_S as token advantages, in TRL's GRPO loss, whose clip takes the "
        "place of importance_clip, and in which divergence_beta has no part.",
    )
    divergence_beta: float | None = option("distillation", "0: forward KL; 1: reverse KL; between: Jensen-Shannon.")
    divergence_top_k: int | None = option("distillation", "How many tokens top_k compares one by one.")
    importance_clip: float | None = option(
        "distillation",
        "The most that the ratio of new to old probability weighs a token's divergence, where a batch serves for "
        "several steps; none: not weighed.",
    )
    first_error_reward: str | None = option(
        "run",
        "Name of a reward function that returns how many tokens of a rollout come before its first error, None where "
        "it sees none; its weight in reward_weights must be 0.",
        follows="what the task knows",
    )

    @property
    def constants(self) -> Any:
        """The method's own constants."""
        raise NotImplementedError

    def coefficient_at(self, step: int) -> float:
        """lambda at an optimiser step."""
        raise NotImplementedError

    @property
    def negative_weight(self) -> float:
        """The factor of rollouts with A < 0: `negative_advantage_weight`, resolved."""
        assert self.negative_advantage_weight is not None  # `MethodOptions` has put in what the method says
        return self.negative_advantage_weight

    def hint_content(self) -> HintContent:
        """What hints carry; what is not read is the answer."""
        given: dict[str, Any] = {
            "positive": self.positive_content,
            "negative": self.negative_content,
            "positive_part": self.positive_part,
            "negative_part": self.negative_part,
            "tokens": self.hint_max_tokens,
        }
        return HintContent(**{name: value for name, value in given.items() if value is not None})
