"""The credit of rollouts under several methods at once, by the pipeline that training uses.

Every rollout is read once in each context that any of the methods asks for; a method is then a choice among its
log-probs. Dimensions: N rollouts of all groups together, C contexts, T completion tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..methods.method import Method
from ..methods.options import OtherModelOptions
from ..methods.registry import METHODS, applicable_options, find_method, method_options
from ..methods.stages import Context
from ..references.groups import Group, References
from ..scoring.pipeline import Found, Pipeline, completions_of, place
from ..scoring.requests import Prompt
from ..scoring.score import Completions, evaluating


@dataclass(frozen=True)
class Variant:
    """A method with its options, to be shown beside others.

    Attributes:
        name: `grpo`, `cepo own`, `cepo mixture of 4`.
        options: The `MethodOptions` of the method.
    """

    name: str
    options: Any

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def method(self) -> Method:
        return self.options.method_spec

    @property
    def rule(self) -> str | None:
        """Whose answer is r-, for methods that let one choose."""
        return getattr(self.options, "negative_reference", None)

    def with_options(self, **options: Any) -> "Variant":
        """The same with other options."""
        return Variant(self.name, replace(self.options, **options))

    @property
    def short(self) -> str:
        """The name without the size of a mixture."""
        return self.name.partition(" of ")[0]


def make_variant(method: str, given: Mapping[str, Any], own: Mapping[str, Any]) -> Variant:
    """A variant of a method.

    Args:
        method: Its name, or its import path.
        given: The user's options; those that the method does not read are left out.
        own: What makes the variant, over these.
    """
    options: Any = method_options(method, **{**applicable_options(given, method), **own})
    words = [options.method, *map(str, own.values())]
    variant = Variant(" ".join(words), options)
    return (
        replace(variant, name=f"{variant.name} of {options.max_negatives}")
        if "mixture" in str(variant.rule)
        else variant
    )


def all_variants(
    given: Mapping[str, Any] | None = None, *, mixtures: Sequence[int] = (), columns: Sequence[str] | None = None
) -> list[Variant]:
    """GRPO first, then every other method with each of its variants.

    Args:
        given: The user's options of methods; with `method`, a method of the user that is shown too.
        mixtures: Sizes of mixtures, each a variant of its own; empty: as `given` has it.
        columns: Of the data set, for methods that ask what is known of its tokens; None: these are left out.

    Raises:
        ValueError: If the method that `given` names refuses these columns, as its reason has it.
    """
    given = dict(given or {})
    chosen = given.pop("method", None)
    names = [*METHODS, *([chosen] if chosen and chosen not in METHODS else [])]
    variants = []
    for name in sorted(names, key=lambda name: find_method(name).changes_advantages):
        method = find_method(name)
        if issubclass(method.options, OtherModelOptions) and "teacher_model_name_or_path" not in given:
            continue
        if method.token_values is not None:
            if columns is None:
                continue
            reason = method_options(name, **applicable_options(given, name)).dataset_problem(columns)
            if reason and name == chosen:
                raise ValueError(f"method {method.name!r} cannot be shown on this dataset: {reason}")
            if reason:
                continue
        for own in method.variants:
            sizes = mixtures if mixtures and "mixture" in str(own.get("negative_reference")) else [None]
            for size in sizes:
                sized = given if size is None else {**given, "max_negatives": size}
                variants.append(make_variant(name, sized, own))
    return variants


@dataclass(frozen=True)
class Credit:
    """The credit of one rollout under one variant.

    Attributes:
        references: r+ and r-, and why no better r- was had.
        contexts: What it was read with, that which speaks for it first; STUDENT (None) for no hint. Empty: not read.
        positive, negative: (T,) log P_T+ and the log of what stands against it [nats]; None where not read.
        evidence: (T,) [nats]; 0 where not read.
        advantages: (T,) A_t.
        shift: (T,) (A_t - A) as a share of the placement's scale, see `TokenAdvantages.shift`.
        moved, at_bound: (T,) bool, see `TokenAdvantages`.
        scale: The |A_t - A| of a shift of 1.
        rollout_advantage: A, GRPO's or the method's own.
    """

    references: References
    contexts: list[Context]
    positive: Tensor | None
    negative: Tensor | None
    evidence: Tensor
    advantages: Tensor
    shift: Tensor
    moved: Tensor
    at_bound: Tensor
    scale: float
    rollout_advantage: float


@dataclass(frozen=True)
class Inspected:
    """One rollout under all variants: `student` is (T,) log P_S [nats]."""

    student: Tensor
    credit: dict[Variant, Credit]


def inspect(
    groups: Sequence[Group],
    prompts: Sequence[Prompt],
    variants: Sequence[Variant],
    *,
    pipeline: Pipeline,
    step: int = 0,
) -> list[list[Inspected]]:
    """What each rollout of each group gets under each variant.

    Args:
        groups: The groups.
        prompts: Their prompts as the student read them.
        variants: The variants to compare.
        pipeline: From groups to evidence; the model's mode is the caller's, see `evaluating`.
        step: The optimiser step whose token advantages are shown.
    """
    completions = completions_of(groups)
    student = pipeline.student(groups, prompts, completions)
    options = [variant.options for variant in variants]
    found = pipeline.find_evidence(options, groups, prompts, completions, student=student)
    trained = completions_of(groups, trained_only=True).wanted
    credit = {
        variant: _credit_of(variant, one, groups, trained, completions, step)
        for variant, one in zip(variants, found, strict=True)
    }
    rows = iter(range(len(completions.prompts)))
    lengths = completions.wanted.sum(dim=1).tolist()
    return [
        [
            Inspected(student[row, : lengths[row]], {variant: credit[variant][row] for variant in variants})
            for row in (next(rows) for _ in group.rollouts)
        ]
        for group in groups
    ]


def _credit_of(
    variant: Variant, found: Found, groups: Sequence[Group], trained: Tensor, completions: Completions, step: int
) -> list[Credit]:
    evidence = found.evidence
    placed = place(found, variant.options, groups, trained, step)
    values = evidence.values.masked_fill(~trained, 0.0)
    results = []
    lengths = completions.wanted.sum(dim=1).tolist()
    for row, length in enumerate(lengths):
        contexts = found.plan.contexts[row]
        sides = [evidence.positive, evidence.negative] if contexts else [None, None]
        positive, negative = (None if side is None else side[row, :length] for side in sides)
        results.append(
            Credit(
                found.plan.references[row],
                contexts,
                positive,
                negative,
                values[row, :length],
                placed.advantages[row, :length],
                placed.shift[row, :length],
                placed.moved[row, :length],
                placed.at_bound[row, :length],
                float(placed.scale[row]),
                float(placed.rollout_advantages[row]),
            )
        )
    return results


def inspect_with(
    model: PreTrainedModel,
    processing_class: Any,
    groups: Sequence[Group],
    variants: Sequence[Variant],
    *,
    max_tokens: int,
    seed: str = "0",
    other_model: PreTrainedModel | None = None,
    temperature: float = 1.0,
) -> list[list[Inspected]]:
    """`inspect` for a model that no trainer holds, with a token budget for its passes.

    Args:
        model, processing_class, max_tokens: As for `Pipeline.of`.
        groups, variants: As for `inspect`.
        seed: Of what methods draw.
        other_model: For methods that need one.
        temperature: Of the distributions; training has that of sampling.
    """
    pipeline = replace(Pipeline.of(model, processing_class, max_tokens=max_tokens, temperature=temperature), seed=seed)
    if other_model is not None:
        other = Pipeline.of(other_model, processing_class, max_tokens=max_tokens, temperature=temperature)
        pipeline = replace(pipeline, other_log_probs=other.log_probs)
    prompts = [pipeline.encoder.prompt(group.messages) for group in groups]
    with evaluating(model):
        return inspect(groups, prompts, variants, pipeline=pipeline)
