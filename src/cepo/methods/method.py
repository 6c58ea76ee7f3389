"""What a method is: a composition of stages, and what is to be said of it, said once.

    references -> contexts -> evidence -> placement -> token advantages

Each stage is a plain function. A method is one file that makes one `Method`; the registry has a line for it, and
`--method package.module:name` takes one from anywhere. Options of a method's own are a dataclass in its file.

Dimensions: B rollouts, C contexts, G rollouts of a group, T completion tokens.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import Tensor

from ..credit import evidence, mean_probability, unscorable
from ..references.extraction import reference_answer
from ..references.groups import References, Rollout
from ..references.hint_content import Part, with_contents
from ..references.negatives import choose_references
from .shared_options import SharedOptions
from .token_advantages import AssignCredit, CreditInputs, TokenAdvantages, negative_weights, uniform


class Unhinted(Enum):
    """Who reads the student's own prompt, if not the policy itself."""

    OTHER_MODEL = "other model"


# Another model (`teacher_model_name_or_path`), without a hint.
OTHER_MODEL = Unhinted.OTHER_MODEL
# The policy itself, without a hint.
STUDENT = None
# What a rollout is read with: a text for the hint of a teacher, OTHER_MODEL, or STUDENT.
Context = str | Unhinted | None

# The shared options of methods with teachers: whose weights these have.
TEACHER = ("teacher", "teacher_sync_steps", "teacher_ema_decay")
# Those of methods with `correct_and_incorrect_answers`: whose answer is r-, and what hints say.
CONTRAST_OPTIONS = (
    *("negative_reference", "max_negatives", "missing_negative", "hint_template", "hint_max_tokens"),
    *("positive_content", "negative_content", "positive_part", "negative_part"),
)


@dataclass(frozen=True)
class StageContext:
    """What a references stage may use besides a group.

    Attributes:
        cut: Cuts a text to its first or last tokens: (text, prefix or suffix, number of tokens).
        random: The group's own generator, the same on every process and after resuming.
    """

    cut: Callable[[str, Part, int], str]
    random: random.Random


@dataclass(frozen=True)
class Evidence:
    """The evidence of B rollouts.

    Attributes:
        values: (B, T) evidence [nats]; 0 for a rollout that was not read.
        unscorable: (B, T) bool, the tokens to which a teacher gave no finite log-prob.
        scored: (B,) bool, the rollouts of which there is evidence.
        positive, negative: (B, T) the two log-probs that were compared [nats], for people; None without teachers.
    """

    values: Tensor
    unscorable: Tensor
    scored: Tensor
    positive: Tensor | None = None
    negative: Tensor | None = None


@dataclass(frozen=True)
class LabeledGroup:
    """A whole group for a method that asks what is known of its tokens, rather than teachers.

    Attributes:
        row: The data set's row.
        tokens: For each rollout, the text that each token adds.
        attempts: Answers, rewards and verdicts.
        advantages: GRPO's.
        prompt_tokens: Length of the prompt without its images [tokens].
    """

    row: Mapping[str, Any]
    tokens: Sequence[Sequence[str]]
    attempts: Sequence[Rollout]
    advantages: Sequence[float]
    prompt_tokens: int


# References stage -----------------------------------------------------------------------------------------------------

MakeReferences = Callable[[Sequence[Rollout], str, SharedOptions, StageContext], list[References]]


def correct_answer(
    attempts: Sequence[Rollout], solution: str, options: SharedOptions, tools: StageContext
) -> list[References]:
    """r+ alone: the answer, or what `positive_content` puts in its place."""
    plain = [References(reference_answer(solution, options.answer_extractor), ())] * len(attempts)
    return with_contents(plain, attempts, solution, options.hint_content(), tools.cut)


def correct_and_incorrect_answers(
    attempts: Sequence[Rollout], solution: str, options: SharedOptions, tools: StageContext
) -> list[References]:
    """r+, and r- of the group's rejected rollouts (CEPO's paper, algorithm step 2), or what stands in their place."""
    rule, most = options.negative_reference, options.max_negatives
    assert rule is not None  # its methods read both
    assert most is not None
    chosen = choose_references(attempts, solution, rule=rule, max_negatives=most, extractor=options.answer_extractor)
    return with_contents(chosen, attempts, solution, options.hint_content(), tools.cut)


# Contexts stage -------------------------------------------------------------------------------------------------------

# The contexts of a rollout, that which speaks for it first. An empty list: it is not read.
MakeContexts = Callable[[References, SharedOptions], list[Context]]


def told_and_student(references: References, options: SharedOptions) -> list[Context]:  # noqa: ARG001
    """A teacher that is told r+, against the policy itself."""
    return [references.positive, STUDENT]


# Evidence stage -------------------------------------------------------------------------------------------------------

# ((C, B, T) log-probs [nats], (C, B) bool which contexts a rollout was read in) -> evidence, of each rollout by itself:
# log P_S of a micro-batch may come from its update.
FindEvidence = Callable[[Tensor, Tensor], Evidence]


def contrast(logps: Tensor, present: Tensor) -> Evidence:
    """The first context against the mean probability of the others.

    Args:
        logps: (C, B, T) log-probs of the sampled tokens [nats]; anything where not `present`.
        present: (C, B) bool, which contexts a rollout was read in.
    """
    positive, negative = logps[0], mean_probability(logps[1:], present[1:])
    return Evidence(evidence(positive, negative), unscorable(positive, negative), present.any(0), positive, negative)


# Evidence without teachers, of a whole group: (group, options) -> for each rollout the (T,) evidence of its tokens.
TokenValues = Callable[[LabeledGroup, SharedOptions], list[list[float]]]

# Which rollouts are read ----------------------------------------------------------------------------------------------

# ((B,) advantages, (B,) verdicts, options) -> (B,) bool: those whose evidence can move something.
RolloutFilter = Callable[[Tensor, Tensor, SharedOptions], Tensor]


def with_advantage(advantages: Tensor, verdicts: Tensor, options: SharedOptions) -> Tensor:  # noqa: ARG001
    """Rollouts of groups with variance: no other can move the policy."""
    return advantages != 0


def all_rollouts(advantages: Tensor, verdicts: Tensor, options: SharedOptions) -> Tensor:  # noqa: ARG001
    """Every rollout."""
    return advantages == advantages


# The method -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoConstants:
    """A method without options of its own."""


@dataclass(frozen=True)
class MethodDoc:
    """A row of the table of methods in docs/methods.md.

    Attributes:
        formula: Of the token advantage, in the notation of that page.
        told: What its teachers are told.
        sign: Whether every token keeps the sign of its rollout's advantage.
        bounds: Of the token advantage.
        passes: Over a rollout, beyond GRPO's, while the method is at work.
    """

    formula: str = ""
    told: str = ""
    sign: str = ""
    bounds: str = ""
    passes: str = ""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How one method places credit.

    Attributes:
        name: As `--method` takes it.
        summary: A phrase: what a token gets of its rollout's advantage.
        source: Its paper, as ``arXiv 2605.19436``; empty for what is no paper's.
        facts: For the table of methods.
        options: Names of the shared options (`SharedOptions`) that it reads; any other is refused.
        placement: From evidence to token advantages.
        references: Of every rollout of a group; not called without `contexts`.
        contexts: The contexts in which a rollout is read; None for a method without teachers.
        evidence: From the log-probs under all contexts.
        labels: Evidence from what is known of the tokens, in place of teachers: (group, options) -> for each rollout
            the (T,) evidence of its tokens.
        check_dataset: Why a data set with these columns will not do, or None: (columns, options) -> reason.
        rollout_filter: The rollouts that are scored.
        distils: Whether the loss is the student's divergence from the teacher, rather than GRPO's.
        has_loss_weights: Whether it weighs tokens in the loss's mean (`TokenAdvantages.loss_weights`), which then has
            to be one mean over tokens.
        evidence_is_signed: Whether evidence above 0 raises the advantage of a correct rollout's token, and evidence
            below 0 lowers that of an incorrect one's.
        needs_other_model: Whether it has OTHER_MODEL among its contexts.
        constants: The dataclass of its own options, set by `method_kwargs`.
        defaults: Values of shared options that are its own where the user gives none.
        presets: Named sets of options.
        variants: What `cepo explain` shows of it: options over its defaults, one set a variant.
    """

    name: str
    summary: str
    assign_credit: AssignCredit
    source: str = ""
    facts: MethodDoc = MethodDoc()
    options: frozenset[str] = frozenset()
    references: MakeReferences = correct_answer
    contexts: MakeContexts | None = None
    evidence: FindEvidence = contrast
    token_values: TokenValues | None = None
    check_dataset: Callable[[Collection[str], SharedOptions], str | None] | None = None
    rollout_filter: RolloutFilter = with_advantage
    distils: bool = False
    has_loss_weights: bool = False
    evidence_is_signed: bool = True
    needs_other_model: bool = False
    constants: type = NoConstants
    defaults: Mapping[str, Any] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    variants: Sequence[Mapping[str, Any]] = ({},)

    def __post_init__(self):
        if self.contexts is not None and self.token_values is not None:
            raise ValueError(f"method {self.name}: evidence is of contexts or of labels; leave one of them out")
        if self.contexts is None and self.evidence is not contrast:
            raise ValueError(f"method {self.name}: without contexts there are no log-probs for its evidence stage")

    @property
    def needs_teachers(self) -> bool:
        return self.contexts is not None

    @property
    def changes_advantages(self) -> bool:
        """Whether token advantages may differ from GRPO's, so that its placement has to run."""
        return self.needs_teachers or self.token_values is not None or self.assign_credit is not uniform

    @property
    def needs_solution(self) -> bool:
        """Whether its rows need a `solution` column: teachers are told it, or labels are judged by it."""
        return self.needs_teachers or self.token_values is not None

    def place(self, inputs: CreditInputs, options: SharedOptions, step: int) -> TokenAdvantages:
        """Token advantages at an optimiser step, `negative_advantage_weight` included."""
        placed = self.assign_credit(inputs, options, step)
        if not isinstance(placed, TokenAdvantages):
            kind = type(placed).__name__
            raise TypeError(
                f"method {self.name}: its placement returned a {kind}; TokenAdvantages.of makes a TokenAdvantages"
            )
        if options.negative_weight == 1:
            return placed
        return placed.weighted(negative_weights(placed.rollout_advantages, options.negative_weight))

    def wanted(self, advantages: Tensor, verdicts: Tensor, options: SharedOptions) -> Tensor:
        """(B,) bool, the rollouts that are read: those whose evidence can move something."""
        wanted = self.rollout_filter(advantages, verdicts, options)
        # Where the loss counts scored tokens, leaving some out would change the weight of the others.
        spared = options.negative_weight == 0 and not self.has_loss_weights
        return wanted & (advantages >= 0) if spared else wanted
