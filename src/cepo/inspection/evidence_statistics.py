"""Statistics of evidence on any dataset: its size, its tokens, and its agreement with the verdicts.

Dimensions: T tokens of one rollout, N tokens of many rollouts together.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..references.extraction import last_box_place
from ..scoring.prompts import tokenizer_of
from .view_model import InspectedGroup, InspectedRollout, Variant

Floats = NDArray[np.float64]
# digit: contains a digit. word: contains a letter. symbol: any other visible text. end: a special token.
Kind = Literal["digit", "word", "symbol", "space", "end"]
# Relative to the boxed answer. before: up to the first mention of the answer. between: from there to the box. box: in
# the box. after: after the box. unboxed: the rollout has no box.
Position = Literal["before", "between", "box", "after", "unboxed"]
KINDS: tuple[Kind, ...] = get_args(Kind)
POSITIONS: tuple[Position, ...] = ("before", "between", "box")
# Smaller evidence has no sign in `against` [nats].
SIGN_TOLERANCE = 0.01


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; NaN if undefined."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """As JSON, with None for NaN."""
        return {name: float(number) if np.isfinite(number) else None for name, number in vars(self).items()}


def weighted_mean(values: Floats, weights: Floats) -> float:
    """The mean; NaN if the weights sum to 0."""
    total = weights.sum()
    return float((values * weights).sum() / total) if total else np.nan


def bootstrap(
    statistics: Mapping[str, Callable[[Floats], float]], groups: NDArray[np.int64], *, resamples: int, seed: int
) -> dict[str, Estimate]:
    """Statistics with 95 % bootstrap intervals over groups.

    Args:
        statistics: Name -> function from (N,) token weights to a number, NaN if undefined.
        groups: (N,) index of each token's group.
        resamples: Number of bootstrap samples.
        seed: Seed of the resampling.
    """
    draw = np.random.default_rng(seed)
    count = int(groups.max()) + 1 if len(groups) else 0
    present = np.unique(groups)
    samples = [np.ones(count)]
    for _ in range(resamples if count else 0):
        samples.append(np.bincount(draw.choice(present, len(present)), minlength=count).astype(float))
    results = {}
    for name, statistic in statistics.items():
        value, *others = [statistic(sample[groups]) for sample in samples]
        low, high = np.nanquantile(others, [0.025, 0.975]) if np.isfinite(others).any() else (np.nan, np.nan)
        results[name] = Estimate(float(value), float(low), float(high))
    return results


def kind_of(text: str, *, special: bool = False) -> Kind:
    """The kind of a token with this text."""
    if special:
        return "end"
    if any(character.isdigit() for character in text):
        return "digit"
    if any(character.isalpha() for character in text):
        return "word"
    return "symbol" if text.strip() else "space"


def positions_of(texts: Sequence[str]) -> list[Position]:
    """The position of each token of a rollout relative to its boxed answer.

    If the answer also occurs earlier, as a number of the question, `before` ends too early.
    """
    text = "".join(texts)
    box = last_box_place(text)
    if box is None:
        return ["unboxed"] * len(texts)
    start, end = box
    answer = re.escape(text[start:end].strip())
    mention = re.search(rf"(?<!\w){answer}(?!\w)", text[:end]) if answer else None
    first = start if mention is None else mention.start()
    positions: list[Position] = []
    begin = 0
    for piece in texts:
        stop = begin + len(piece)
        if begin >= end:
            positions.append("after")
        elif stop > start:
            positions.append("box")
        else:
            positions.append("between" if stop > first else "before")
        begin = stop
    return positions


@dataclass(frozen=True)
class RolloutEvidence:
    """The evidence at one rollout's tokens.

    Attributes:
        evidence: (T,) [nats].
        moved: (T,) bool, whether the token advantage differs from the rollout's.
        kinds, positions: (T,) kind and position of each token.
        correct: The verdict.
        group: Index of its group.
    """

    evidence: Floats
    moved: NDArray[np.bool_]
    kinds: Sequence[Kind]
    positions: Sequence[Position]
    correct: bool
    group: int

    @classmethod
    def of(cls, processing_class: Any, one: InspectedRollout, variant: Variant, *, group: int) -> "RolloutEvidence":
        """The evidence of an inspected rollout under one method."""
        special = set(tokenizer_of(processing_class).all_special_ids)
        pairs = zip(one.tokens, one.rollout.ids, strict=True)
        kinds = [kind_of(text, special=token in special) for text, token in pairs]
        credit = one.credit[variant]
        evidence, moved = credit.evidence.double().numpy(), credit.moved.numpy()
        return cls(evidence, moved, kinds, positions_of(one.tokens), one.rollout.correct is True, group)


def statistics_of(rollouts: Sequence[RolloutEvidence], *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """Size and location of the evidence of some rollouts.

    Args:
        rollouts: At least one rollout.
        resamples, seed: Arguments of the bootstrap over groups.

    Returns:
        `moved`: share of tokens whose advantage differs from the rollout's. `abs_mean`: mean |evidence| [nats].
        `against`: share of tokens with evidence against the verdict, among those above `SIGN_TOLERANCE`.
        `abs_mean_POSITION`: mean |evidence| at a position [nats]. `evidence_KIND`, `tokens_KIND`: share of a kind in
        all |evidence| and in all tokens.
    """
    evidence = np.concatenate([one.evidence for one in rollouts])
    size = np.abs(evidence)
    sign = np.concatenate([np.full(len(one.evidence), 1 if one.correct else -1) for one in rollouts])
    moved = np.concatenate([one.moved for one in rollouts]).astype(float)
    kinds = np.array([kind for one in rollouts for kind in one.kinds])
    positions = np.array([position for one in rollouts for position in one.positions])
    groups = np.concatenate([np.full(len(one.evidence), one.group) for one in rollouts])
    against = (sign * evidence < 0).astype(float)

    everywhere = np.ones(len(size))
    # Each statistic is a weighted mean: values, and weights beside the bootstrap's.
    means: dict[str, tuple[Floats, Floats]] = {
        "moved": (moved, everywhere),
        "abs_mean": (size, everywhere),
        "against": (against, (size > SIGN_TOLERANCE).astype(float)),
        **{f"abs_mean_{position}": (size, (positions == position).astype(float)) for position in POSITIONS},
        **{f"evidence_{kind}": ((kinds == kind).astype(float), size) for kind in KINDS},
        **{f"tokens_{kind}": ((kinds == kind).astype(float), everywhere) for kind in KINDS},
    }

    def mean(values: Floats, factor: Floats, weights: Floats) -> float:
        return weighted_mean(values, weights * factor)

    statistics = {name: partial(mean, values, factor) for name, (values, factor) in means.items()}
    return bootstrap(statistics, groups, resamples=resamples, seed=seed)


def evidence_statistics(
    processing_class: Any, groups: Sequence[InspectedGroup], variant: Variant, *, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """`statistics_of` the correct and the incorrect rollouts under one method, as JSON.

    Args:
        processing_class: Tokenizer or processor of the model.
        groups: The inspected groups.
        variant: The method.
        seed: Seed of the bootstrap.

    Returns:
        For `correct` and `incorrect`: the number of `rollouts`, the share with a `fallback`, and, if there are
        rollouts, each statistic with its interval. `against` is left out for methods with unsigned evidence.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, verdict in (("correct", True), ("incorrect", False)):
        chosen = [
            (index, one)
            for index, group in enumerate(groups)
            for one in group.rollouts
            if one.rollout.correct is verdict
        ]
        found[name] = {"rollouts": len(chosen)}
        if not chosen:
            continue
        found[name]["fallback"] = fmean(one.credit[variant].references.fallback is not None for _, one in chosen)
        evidence = [RolloutEvidence.of(processing_class, one, variant, group=index) for index, one in chosen]
        estimates = statistics_of(evidence, seed=seed)
        signed = variant.method.evidence_is_signed
        found[name] |= {key: one.as_dict() for key, one in estimates.items() if signed or key != "against"}
    return found
