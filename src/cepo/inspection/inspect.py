"""Credit of rollouts under several methods, computed by the pipeline that training uses.

Methods share scoring passes: each rollout is scored once per distinct context.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from ..methods.options import OtherModelOptions
from ..methods.registry import METHODS, applicable_options, find_method, method_options, own_options
from ..references.groups import Group
from ..scoring.forward import evaluating
from ..scoring.pipeline import Pipeline, ScoredBatch, assign_credit
from ..scoring.prompts import token_texts
from ..scoring.requests import Prompt
from .view_model import Credit, InspectedGroup, InspectedRollout, Variant


def make_variant(method: str, given: Mapping[str, Any], own: Mapping[str, Any]) -> Variant:
    """A variant of a method.

    Args:
        method: Name or import path of the method.
        given: The user's options; the method's are used.
        own: Options of the variant, which override them.
    """
    options: Any = method_options(method, **{**applicable_options(given, method), **own})
    size = f"of {options.max_negatives}" if "mixture" in own.get("negative_reference", "") else ""
    return Variant(" ".join([options.method, *map(str, own.values()), size]).strip(), options)


def all_variants(given: Mapping[str, Any] | None = None, *, columns: Sequence[str] | None = None) -> list[Variant]:
    """GRPO, then every other method with each of its variants.

    Args:
        given: The user's method options. A custom `method` among them is included; the options that only this method
            declares do not reach other methods, in which the same name may mean something else.
        columns: Columns of the dataset, for methods with token labels; None: leave these methods out.

    Raises:
        ValueError: If the method that `given` names does not support these columns.
    """
    given = dict(given or {})
    chosen = given.pop("method", None)
    shared = {name: value for name, value in given.items() if name not in own_options(chosen)}
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
                raise ValueError(f"method {method.name!r} does not support this dataset: {reason}")
            if reason:
                continue
        variants += [make_variant(name, given if name == chosen else shared, one) for one in method.variants]
    return variants


def find_variant(name: str, variants: Sequence[Variant]) -> Variant:
    """The variant that `--show` names.

    Raises:
        ValueError: If no variant has this name.
    """
    short = {variant.short: variant for variant in variants}
    # The name of a method stands for its default rule.
    rule = getattr(METHODS[name].options, "negative_reference", None) if name in METHODS else None
    if (short_name := name if rule is None or name in short else f"{name} {rule}") in short:
        return short[short_name]
    others = f"choose one of {', '.join(repr(s) if ' ' in s else s for s in short)}"
    if name not in METHODS:
        raise ValueError(f"--show {name!r}: unknown method; {others}")
    if issubclass(METHODS[name].options, OtherModelOptions):
        raise ValueError(f"--show {name} needs --teacher_model_name_or_path, a model with the same vocabulary")
    raise ValueError(f"--show {name}: this method does not support this dataset; {others}")


def inspect(
    groups: Sequence[Group],
    prompts: Sequence[Prompt],
    variants: Sequence[Variant],
    *,
    pipeline: Pipeline,
    step: int = 0,
    filler_of: Callable[[Group, list[str]], list[bool]] | None = None,
) -> list[InspectedGroup]:
    """The credit of each group's local rollouts under each variant.

    Args:
        groups: The groups.
        prompts: The prompts of the groups, as the student saw them.
        variants: The variants to compare.
        pipeline: From groups to evidence. Call under `evaluating(model)`.
        step: Optimizer step of the token advantages.
        filler_of: (group, token texts) -> whether each token is filler, for tasks with token labels.
    """
    student = pipeline.student_log_probs(groups, prompts)
    options = [variant.options for variant in variants]
    batches = pipeline.find_evidence(options, groups, prompts, student=student)
    credit = [_credit_of(variant, batch, groups, step) for variant, batch in zip(variants, batches, strict=True)]
    inspected: list[InspectedGroup] = []
    row = 0
    for group in groups:
        rollouts = []
        for number, rollout in enumerate(group.rollouts, 1):
            if not rollout.local:
                continue
            tokens = token_texts(pipeline.encoder.processing_class, rollout.ids)
            by_variant = {variant: rows[row] for variant, rows in zip(variants, credit, strict=True)}
            filler = filler_of(group, tokens) if filler_of else None
            rollouts.append(InspectedRollout(rollout, number, tokens, student[row, : len(tokens)], by_variant, filler))
            row += 1
        inspected.append(InspectedGroup(group, rollouts))
    return inspected


def _credit_of(variant: Variant, batch: ScoredBatch, groups: Sequence[Group], step: int) -> list[Credit]:
    """The credit of each rollout under one variant."""
    evidence = batch.evidence
    assigned = assign_credit(evidence, variant.options, groups, step)
    values = evidence.values.masked_fill(~assigned.mask, 0.0)
    results = []
    for row, rollout in enumerate(rollout for group in groups for rollout in group.local):
        at = row, slice(len(rollout.ids))
        scored = bool(batch.contexts[row])
        results.append(
            Credit(
                batch.references[row],
                batch.contexts[row],
                evidence.positive[at] if scored and evidence.positive is not None else None,
                evidence.negative[at] if scored and evidence.negative is not None else None,
                values[at],
                assigned.advantages[at],
                assigned.shift[at],
                assigned.moved[at],
                float(assigned.scale[row]),
                float(assigned.rollout_advantages[row]),
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
    filler_of: Callable[[Group, list[str]], list[bool]] | None = None,
) -> list[InspectedGroup]:
    """`inspect` for a model outside a trainer.

    Args:
        model, processing_class, max_tokens, temperature: As for `Pipeline.of`.
        groups, variants, filler_of: As for `inspect`.
        seed: Seed of what methods draw.
        other_model: The other model, for methods that need one.
    """
    pipeline = replace(Pipeline.of(model, processing_class, max_tokens=max_tokens, temperature=temperature), seed=seed)
    if other_model is not None:
        other = Pipeline.of(other_model, processing_class, max_tokens=max_tokens, temperature=temperature)
        pipeline = replace(pipeline, other_log_probs=other.log_probs)
    prompts = [pipeline.encoder.prompt(group.messages) for group in groups]
    with evaluating(model):
        return inspect(groups, prompts, variants, pipeline=pipeline, filler_of=filler_of)
