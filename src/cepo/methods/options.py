"""Options of a run's method: what is not given is put in, what is not read is refused, and where a default comes from.

A method names the options that it reads; any other is refused by name, so that nothing is silently void. What is not
given is what the method says, or else what this file says. An option that the chosen method does not read stays None.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from ..credit import Schedule, evidence_coefficient
from ..references.extraction import find_extractor
from ..references.hint_content import NegativeContent, Part, PositiveContent
from ..references.hints import DEFAULT_HINT_TEMPLATE, require_placeholder
from ..references.negatives import DEFAULT_RULE, NegativeRule
from .kinds import check_types
from .method import Method
from .registry import METHODS, find_method
from .shared_options import Divergence, MissingNegative, SharedOptions, TeacherSource


@dataclass
class MethodOptions(SharedOptions):
    """What the stages of a method read. `CEPOConfig` has these beside TRL's; alone they need no TRL.

    Raises:
        ValueError: For an unknown method, an option that it does not read, or a value out of range.
    """

    def __post_init__(self):
        self.resolve()

    @property
    def method_spec(self) -> Method:
        """The method."""
        return find_method(self.method)

    @property
    def constants(self) -> Any:
        """The method's own constants.

        Raises:
            ValueError: If `method_kwargs` names one that it does not have, or gives a value that it refuses.
        """
        return constants_of(self.method_spec, self.method_kwargs)

    @property
    def uses_divergence_loss(self) -> bool:
        """Whether the loss is a divergence over the vocabulary, rather than TRL's with other advantages."""
        return self.method_spec.distils and self.divergence != "sampled"

    def coefficient_at(self, step: int) -> float:
        """lambda at an optimiser step; 0 for a method that places nothing, 1 for one whose strength has no option."""
        method = self.method_spec
        if not method.changes_advantages:
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

    def resolve(self) -> None:
        """Put in what the method says, and refuse what it does not read or cannot take."""
        check_types(SharedOptions, {one.name: getattr(self, one.name) for one in fields(SharedOptions)})
        method = self.method_spec
        #: What the user gave, method included: of use to another method that is shown beside this one.
        self.given: dict[str, Any] = {
            name: value
            for name in ("method", "method_kwargs", "answer_extractor", *DEFAULTED)
            if (value := getattr(self, name)) is not None
        }
        unread = [name for name in SELECTIVE if not reads(method, name) and getattr(self, name) is not None]
        if unread:
            raise ValueError(f"method={self.method!r} does not read {', '.join(unread)}; leave it out")
        for name in DEFAULTED:
            if getattr(self, name) is None and reads(method, name):
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
        find_extractor(self.answer_extractor)
        if self.hint_template is not None:
            require_placeholder(self.hint_template)
        if self.method_spec.distils and self.negative_advantage_weight != 1:
            raise ValueError(
                f"method={self.method!r} does not read advantages, so that negative_advantage_weight would do nothing; "
                "leave it out"
            )
        if self.method_spec.needs_other_model and self.teacher_model_name_or_path is None:
            raise ValueError(
                f"method={self.method!r} needs teacher_model_name_or_path, a model with the same vocabulary"
            )
        _ = self.constants


# Those that every method may be given.
_COMMON = ("method", "method_kwargs", "negative_advantage_weight", "answer_extractor")
SELECTIVE = tuple(f.name for f in fields(MethodOptions) if f.name not in _COMMON)
# Those whose default is the method's to say.
DEFAULTED = ("negative_advantage_weight", *SELECTIVE)

_CHOICES: dict[str, tuple[str, ...]] = {
    "evidence_schedule": get_args(Schedule),
    "negative_reference": get_args(NegativeRule),
    "missing_negative": get_args(MissingNegative),
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
    "hint_max_tokens": _AT_LEAST_ONE,
    "teacher_sync_steps": _AT_LEAST_ONE,
    "teacher_ema_decay": (lambda value: 0 <= value < 1, "must lie in [0, 1)"),
    "divergence_beta": (lambda value: 0 <= value <= 1, "must lie in [0, 1]"),
    "divergence_top_k": _AT_LEAST_ONE,
    "importance_clip": _AT_LEAST_ONE,
}

# Where the method does not say.
DEFAULTS: dict[str, Any] = {
    "negative_advantage_weight": 1.0,
    "evidence_coefficient": 0.5,
    "evidence_steps": 25,
    "evidence_schedule": "linear",
    "evidence_clip": 0.5,
    "negative_reference": DEFAULT_RULE,
    "max_negatives": 4,
    "missing_negative": "student",
    "hint_template": DEFAULT_HINT_TEMPLATE,
    "positive_content": "answer",
    "negative_content": "answer",
    "positive_part": "whole",
    "negative_part": "whole",
    "hint_max_tokens": 64,
    "teacher": "policy",
    "teacher_sync_steps": 10,
    "teacher_ema_decay": 0.999,
    "divergence": "full",
    "divergence_beta": 0.0,
    "divergence_top_k": 100,
}


def reads(method: Method, name: str) -> bool:
    """Whether a method reads an option; those that are not selective are every method's, or not a method's at all."""
    return name not in SELECTIVE or name in method.options


def default_of(method: Method, name: str) -> Any:
    """The value of an option that a method reads, where the user gives none; None: there is none."""
    return method.defaults.get(name, DEFAULTS.get(name))


def default_text(name: str) -> str:
    """Where a default comes from, in words: the common one, and each method's that has another."""
    readers = [method for method in METHODS.values() if reads(method, name)]
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
        check_types(method.constants, given)
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
    chosen = find_method(method)
    return {name: value for name, value in values.items() if reads(chosen, name)}
