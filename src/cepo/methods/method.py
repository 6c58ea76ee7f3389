"""A method: its options, its stages and its documentation, in one object that the registry knows by name.

A method is one file that defines a dataclass of options and one `Method`. The registry has a line for it;
`--method package.module:name` takes one from anywhere.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ..references.extraction import find_extractor
from ..references.hint_content import HintContent
from ..references.hints import fill_hint
from .option_fields import option, option_fields
from .stages import (
    FindEvidence,
    MakeContexts,
    MakeReferences,
    RolloutFilter,
    TokenValues,
    contrast,
    correct_answer,
    with_advantage,
)
from .token_advantages import AssignCredit, CreditInputs, TokenAdvantages, negative_weights, uniform


@dataclass(kw_only=True)
class MethodOptions:
    """Base class of a method's options, with those that every method has.

    A method adds fields, groups of `cepo.methods.options`, or both. Its fields are flags, YAML keys and arguments of
    `CEPOConfig`. `Method.configure` makes an instance.

    Raises:
        ValueError: Naming the option, if a value has another type or is out of bounds.
    """

    method_spec: "Method" = field(default=None, repr=False, compare=False, metadata={"group": ""})  # type: ignore[assignment]
    negative_advantage_weight: float = option(
        1.0,
        "Factor on the token advantages of rollouts with A < 0. 0.05 with method grpo gives down-weighted negatives; "
        "at 0 such rollouts are neither scored nor trained on.",
        bounds={">=": 0},
    )
    answer_extractor: str = option(
        "auto",
        "Extracts the final answer of completions and solutions. auto: the last box, <answer> tag or #### line, else "
        "the answer that a sentence announces; boxed, tag, gsm8k or sentence: that form alone; or the import path of a "
        "function from a text to its answer or None.",
        group="references",
    )

    def __post_init__(self):
        known = option_fields(type(self))
        for name, value in self.as_dict().items():
            known[name].check(value)
        find_extractor(self.answer_extractor)

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.method_spec.name

    @property
    def uses_divergence_loss(self) -> bool:
        """Whether the loss is a divergence over the vocabulary rather than TRL's GRPO loss."""
        return False

    def as_dict(self) -> dict[str, Any]:
        """The options by name."""
        return {name: getattr(self, name) for name in option_fields(type(self))}

    def coefficient_at(self, step: int) -> float:  # noqa: ARG002
        """lambda at an optimizer step; at 0 the method is GRPO and no rollout is scored."""
        return 1.0

    def hint_content(self) -> HintContent:
        """The content of references: answers, unless a group of options overrides it."""
        return HintContent()

    def hint(self, reference: str) -> str:
        """The hint that carries a reference."""
        return fill_hint("{answer}", reference)

    def dataset_problem(self, columns: Collection[str]) -> str | None:  # noqa: ARG002
        """The reason why a dataset with these columns cannot be used; None if it can."""
        return None

    def config_problem(self, config: Any) -> str | None:  # noqa: ARG002
        """The reason why the options of a `CEPOConfig` contradict the method, and the fix; None if they do not."""
        return None


@dataclass(frozen=True)
class MethodDoc:
    """Documentation of a method: a row of the tables in docs/methods.md, and its paper.

    Attributes:
        summary: A phrase: the share of its rollout's advantage that a token gets.
        source: The paper, as ``arXiv 2605.19436``; empty without one.
        title: Title of the paper, for model cards.
        formula: The token advantage, in the notation of docs/methods.md.
        hints: Content of its teachers' hints.
        sign: Whether every token keeps the sign of its rollout's advantage.
        bounds: Bounds of the token advantage.
        passes: Forward passes for each rollout beside GRPO's, while lambda > 0.
    """

    summary: str = ""
    source: str = ""
    title: str = ""
    formula: str = ""
    hints: str = ""
    sign: str = ""
    bounds: str = ""
    passes: str = ""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method for token-level credit.

    Attributes:
        name: Name for `--method`.
        doc: Its documentation.
        options: The dataclass of its options.
        references: References of every rollout of a group; unused without `contexts`.
        contexts: Contexts under which a rollout is scored; None for a method without teachers.
        evidence: Evidence from the log-probs under all contexts.
        token_values: Evidence from token labels or texts, in place of teachers.
        rollout_filter: The rollouts to score.
        assign_credit: Token advantages from evidence.
        evidence_is_signed: Whether evidence above 0 raises the advantage of a correct rollout's token, and evidence
            below 0 lowers that of an incorrect one's.
        presets: Named sets of options.
        variants: Options over the defaults under which `cepo explain` shows the method, one set a variant.
    """

    name: str
    doc: MethodDoc = MethodDoc()
    options: type[MethodOptions] = MethodOptions
    references: MakeReferences = correct_answer
    contexts: MakeContexts | None = None
    evidence: FindEvidence = contrast
    token_values: TokenValues | None = None
    rollout_filter: RolloutFilter = with_advantage
    assign_credit: AssignCredit = uniform
    evidence_is_signed: bool = True
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    variants: Sequence[Mapping[str, Any]] = ({},)

    def __post_init__(self):
        if self.contexts is not None and self.token_values is not None:
            raise ValueError(f"method {self.name}: give contexts or token_values, not both")
        if self.contexts is None and self.evidence is not contrast:
            raise ValueError(f"method {self.name}: an evidence stage needs contexts, whose log-probs it compares")

    @property
    def needs_teachers(self) -> bool:
        """Whether rollouts are scored under other contexts."""
        return self.contexts is not None

    @property
    def changes_advantages(self) -> bool:
        """Whether token advantages may differ from GRPO's."""
        return self.needs_solution or self.assign_credit is not uniform

    @property
    def needs_solution(self) -> bool:
        """Whether rows need a `solution` column, for hints or token labels."""
        return self.needs_teachers or self.token_values is not None

    def configure(self, **given: Any) -> MethodOptions:
        """The method's options: the given values over its defaults.

        Raises:
            ValueError: For an option that the method does not have, naming the nearest one that it has; or for a value
                that the option does not take.
        """
        known = option_fields(self.options)
        for name in given:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                rest = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
                raise ValueError(f"method {self.name!r} has no option {name}; {rest}")
        return self.options(method_spec=self, **given)

    def token_advantages(self, inputs: CreditInputs, options: MethodOptions, step: int) -> TokenAdvantages:
        """Token advantages at an optimizer step, `negative_advantage_weight` included."""
        found = self.assign_credit(inputs, options, step)
        if not isinstance(found, TokenAdvantages):
            raise TypeError(
                f"method {self.name}: assign_credit returned a {type(found).__name__}; TokenAdvantages.of makes a "
                "TokenAdvantages"
            )
        weight = options.negative_advantage_weight
        return found if weight == 1 else found.weighted(negative_weights(found.rollout_advantages, weight))
