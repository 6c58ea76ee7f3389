"""The options that methods share, their groups, and where a default comes from.

A method names the options that it reads; any other is refused by name, so that nothing is silently void. What is not
given is what the method says, or else what this file says. An option that the chosen method does not read stays None.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from ..credit import Schedule, evidence_coefficient
from ..references.choosing import DEFAULT_RULE, NegativeRule
from ..references.contents import HintContent, NegativeContent, Part, PositiveContent
from ..references.hints import DEFAULT_HINT_TEMPLATE, require_placeholder
from .method import Method
from .registry import METHODS, find_method

NoNegative = Literal["student", "uniform"]
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
class MethodOptions:
    """What the stages of a method read. `CEPOConfig` has these beside TRL's; alone they need no TRL.

    Raises:
        ValueError: For an unknown method, an option that it does not read, or a value out of range.
    """

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
    negative_advantage_weight: float = option(
        "method",
        "Factor on the token advantages of rollouts with A < 0. 0.05 with method grpo is the boring control of every "
        "comparison; at 0 such rollouts are neither read nor trained on.",
        1.0,
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
        "Whose answer is r-: lowest_reward (the paper), most_common, own, mixture or own_or_mixture (docs/credit.md "
        "says why not the paper's).",
    )
    max_negatives: int | None = option(
        "references", "K: the most wrong answers, or rollouts, in a mixture; each is one teacher pass."
    )
    no_negative: NoNegative | None = option(
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
    content_tokens: int | None = option("hints", "Length of that prefix or suffix, in tokens.")
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

    def __post_init__(self):
        self.resolve()

    @property
    def chosen(self) -> Method:
        """The method."""
        return find_method(self.method)

    @property
    def constants(self) -> Any:
        """The method's own constants.

        Raises:
            ValueError: If `method_kwargs` names one that it does not have, or gives a value that it refuses.
        """
        return constants_of(self.chosen, self.method_kwargs)

    def coefficient_at(self, step: int) -> float:
        """lambda at an optimiser step; 0 for a method that places nothing, 1 for one whose strength has no option."""
        method = self.chosen
        if not method.needs_teachers and method.labels is None:
            return 0.0
        if self.evidence_coefficient is None:
            return 1.0
        if self.evidence_steps is None:
            return self.evidence_coefficient
        return evidence_coefficient(
            step,
            initial=self.evidence_coefficient,
            steps=self.evidence_steps,
            schedule=self.evidence_schedule or "linear",
        )

    def hint_content(self) -> HintContent:
        """What hints carry; what is not read is the answer."""
        given: dict[str, Any] = {
            "positive": self.positive_content,
            "negative": self.negative_content,
            "positive_part": self.positive_part,
            "negative_part": self.negative_part,
            "tokens": self.content_tokens,
        }
        return HintContent(**{name: value for name, value in given.items() if value is not None})

    def resolve(self) -> None:
        """Put in what the method says, and refuse what it does not read or cannot take."""
        method = self.chosen
        #: What the user gave, method included: of use to another method that is shown beside this one.
        self.given: dict[str, Any] = {
            name: value
            for name in ("method", "negative_advantage_weight", *SELECTIVE)
            if (value := getattr(self, name)) is not None
        }
        unread = [name for name in SELECTIVE if name not in method.options and getattr(self, name) is not None]
        if unread:
            raise ValueError(f"method={self.method!r} does not read {', '.join(unread)}; leave it out")
        for name in SELECTIVE:
            if name in method.options and getattr(self, name) is None:
                setattr(self, name, default_of(method, name))
        self._check()

    def _check(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")
        for name, (holds, meaning) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise ValueError(f"{name} {meaning}, got {value}")
        if self.hint_template is not None:
            require_placeholder(self.hint_template)
        if self.chosen.needs_other_model and self.teacher_model_name_or_path is None:
            raise ValueError(
                f"method={self.method!r} needs teacher_model_name_or_path, a model with the same vocabulary"
            )
        _ = self.constants


SELECTIVE = tuple(
    f.name for f in fields(MethodOptions) if f.name not in ("method", "method_kwargs", "negative_advantage_weight")
)

_CHOICES: dict[str, tuple[str, ...]] = {
    "evidence_schedule": get_args(Schedule),
    "negative_reference": get_args(NegativeRule),
    "no_negative": get_args(NoNegative),
    "positive_content": get_args(PositiveContent),
    "negative_content": get_args(NegativeContent),
    "positive_part": get_args(Part),
    "negative_part": get_args(Part),
    "teacher": get_args(TeacherSource),
    "divergence": get_args(Divergence),
}
_AT_LEAST_ONE = (lambda value: value >= 1, "must be at least 1")
_RANGES: dict[str, tuple[Any, str]] = {
    "negative_advantage_weight": (lambda value: value >= 0, "must not be negative"),
    "evidence_coefficient": (lambda value: 0 <= value <= 1, "(lambda_0) must lie in [0, 1]"),
    "evidence_steps": (lambda value: value >= 0, "(T_warm) must not be negative"),
    "evidence_clip": (lambda value: 0 < value < 1, "(eps_w) must lie strictly between 0 and 1"),
    "max_negatives": (lambda value: value >= 1, "(K) must be at least 1"),
    "content_tokens": _AT_LEAST_ONE,
    "teacher_sync_steps": _AT_LEAST_ONE,
    "teacher_ema_decay": (lambda value: 0 <= value < 1, "must lie in [0, 1)"),
    "divergence_beta": (lambda value: 0 <= value <= 1, "must lie in [0, 1]"),
    "divergence_top_k": _AT_LEAST_ONE,
    "importance_clip": _AT_LEAST_ONE,
}

# Where the method does not say.
DEFAULTS: dict[str, Any] = {
    "evidence_coefficient": 0.5,
    "evidence_steps": 25,
    "evidence_schedule": "linear",
    "evidence_clip": 0.5,
    "negative_reference": DEFAULT_RULE,
    "max_negatives": 4,
    "no_negative": "student",
    "hint_template": DEFAULT_HINT_TEMPLATE,
    "positive_content": "answer",
    "negative_content": "answer",
    "positive_part": "whole",
    "negative_part": "whole",
    "content_tokens": 64,
    "teacher": "policy",
    "teacher_sync_steps": 10,
    "teacher_ema_decay": 0.999,
    "divergence": "full",
    "divergence_beta": 0.0,
    "divergence_top_k": 100,
}


def default_of(method: Method, name: str) -> Any:
    """The value of an option that a method reads, where the user gives none; None: there is none."""
    return method.defaults.get(name, DEFAULTS.get(name))


def default_text(name: str) -> str:
    """Where a default comes from, in words: the common one, and each method's that has another."""
    readers = [method for method in METHODS.values() if name in method.options]
    values: dict[str, list[str]] = {}
    for method in readers:
        values.setdefault(_shown(default_of(method, name)), []).append(method.name)
    if not values:
        return "none"
    common, *_ = sorted(values, key=lambda value: -len(values[value]))
    rest = [f"{', '.join(names)}: {value}" for value, names in values.items() if value != common]
    return "; ".join([common, *rest])


def _shown(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) and value.isidentifier() else repr(value)


def constants_of(method: Method, given: Mapping[str, Any] | str | None) -> Any:
    """A method's own constants, those that are given over its defaults.

    Raises:
        ValueError: If there is no such constant, or its value is refused.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise ValueError(f"method_kwargs is not JSON: {given!r}") from error
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        raise ValueError(f"method_kwargs must be a JSON object, got {given!r}")
    known = [f.name for f in fields(method.constants)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        if not known:
            raise ValueError(f"method_kwargs: method {method.name!r} has no constants of its own; leave it out")
        raise ValueError(
            f"method_kwargs: method {method.name!r} has no {', '.join(unknown)}; it has {', '.join(known)}"
        )
    try:
        return method.constants(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"method_kwargs: {error}") from error


# Presets --------------------------------------------------------------------------------------------------------------


def presets() -> dict[str, dict[str, Any]]:
    """Every method's presets by name, each with the method that it belongs to."""
    return {
        name: {"method": method.name, **values}
        for method in METHODS.values()
        for name, values in method.presets.items()
    }


def preset_options(name: str, method: str | None = None) -> dict[str, Any]:
    """The options of a preset, for a method: those that it does not read are left out.

    Args:
        name: Of the preset.
        method: The method that the user chose; None: the preset's own.

    Raises:
        ValueError: If there is no such preset.
    """
    known = presets()
    if name not in known:
        raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(known)}")
    values = known[name]
    return values if method is None else {**readable(values, method), "method": method}


def readable(values: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Those of the options that a method reads, or that are not a method's."""
    reads = find_method(method).options
    return {name: value for name, value in values.items() if name not in SELECTIVE or name in reads}
