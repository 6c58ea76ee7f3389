"""Statistics of evidence on any data set: how much there is, on which tokens, and for which side.

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
from ..references.groups import Group, Ids
from ..scoring.prompts import token_texts, tokenizer_of
from .inspect import Credit

Floats = NDArray[np.float64]
# digit: contains a digit. word: contains a letter. symbol: any other visible text. end: a special token.
Kind = Literal["digit", "word", "symbol", "space", "end"]
# Of a rollout with a box. before: up to the first mention of its answer. between: from there to the box. box: inside
# it. after: behind it. unboxed: the rollout has no box.
Position = Literal["before", "between", "box", "after", "unboxed"]
KINDS: tuple[Kind, ...] = get_args(Kind)
POSITIONS: tuple[Position, ...] = ("before", "between", "box")
# The sign of evidence below this size counts neither for nor against the verdict [nats].
SIGN_TOLERANCE = 0.01


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; NaN where there is nothing to measure."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, which has no NaN."""
        return {name: float(number) if np.isfinite(number) else None for name, number in vars(self).items()}


def weighted_mean(values: Floats, weights: Floats) -> float:
    """The mean; NaN if the weights sum to 0."""
    total = weights.sum()
    return float((values * weights).sum() / total) if total else np.nan


def bootstrap(
    statistics: Mapping[str, Callable[[Floats], float]], groups: NDArray[np.int64], *, resamples: int, seed: int
) -> dict[str, Estimate]:
    """Statistics with 95 % bootstrap intervals; whole groups are resampled.

    Args:
        statistics: By name, from (N,) token weights to a number, NaN where there is nothing to measure.
        groups: (N,) index of each token's group.
        resamples: Bootstrap samples.
        seed: Of the resampling.
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
    """The kind of a token, from the text that it adds."""
    if special:
        return "end"
    if any(character.isdigit() for character in text):
        return "digit"
    if any(character.isalpha() for character in text):
        return "word"
    return "symbol" if text.strip() else "space"


def positions_of(texts: Sequence[str]) -> list[Position]:
    """The position of each token of a rollout relative to its boxed answer.

    An answer may also occur earlier as a number of the question; `before` then ends too early, never too late.
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
        moved: (T,) bool, the token advantage differs from the rollout's.
        kinds, positions: (T,) of each token.
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
    def of(cls, processing_class: Any, ids: Ids, credit: Credit, *, correct: bool, group: int) -> "RolloutEvidence":
        """From a rollout's token ids and its credit under one method."""
        special = set(tokenizer_of(processing_class).all_special_ids)
        texts = token_texts(processing_class, ids)
        kinds = [kind_of(text, special=token in special) for text, token in zip(texts, ids, strict=True)]
        evidence, moved = credit.evidence.double().numpy(), credit.moved.numpy()
        return cls(evidence, moved, kinds, positions_of(texts), correct, group)


def statistics_of(rollouts: Sequence[RolloutEvidence], *, resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """How much evidence some rollouts have, and where.

    Args:
        rollouts: At least one.
        resamples, seed: Of the bootstrap over groups.

    Returns:
        `moved`: share of tokens whose advantage differs from the rollout's. `abs_mean`: mean |evidence| [nats].
        `against`: among tokens with more than `SIGN_TOLERANCE`, the share whose evidence contradicts the verdict.
        `abs_mean_POSITION`: mean |evidence| at a position [nats]. `evidence_KIND`, `tokens_KIND`: a kind's share of
        all |evidence| and of all tokens.
    """
    evidence = np.concatenate([one.evidence for one in rollouts])
    size = np.abs(evidence)
    sign = np.concatenate([np.full(len(one.evidence), 1 if one.correct else -1) for one in rollouts])
    moved = np.concatenate([one.moved for one in rollouts]).astype(float)
    kinds = np.array([kind for one in rollouts for kind in one.kinds])
    positions = np.array([position for one in rollouts for position in one.positions])
    groups = np.concatenate([np.full(len(one.evidence), one.group) for one in rollouts])
    against = (sign * evidence < 0).astype(float)

    def mean_at(position: Position, weights: Floats) -> float:
        return weighted_mean(size, weights * (positions == position))

    def of_evidence(kind: Kind, weights: Floats) -> float:
        return weighted_mean((kinds == kind).astype(float), weights * size)

    def of_tokens(kind: Kind, weights: Floats) -> float:
        return weighted_mean((kinds == kind).astype(float), weights)

    statistics: dict[str, Callable[[Floats], float]] = {
        "moved": lambda weights: weighted_mean(moved, weights),
        "abs_mean": lambda weights: weighted_mean(size, weights),
        "against": lambda weights: weighted_mean(against, weights * (size > SIGN_TOLERANCE)),
        **{f"abs_mean_{position}": partial(mean_at, position) for position in POSITIONS},
        **{f"evidence_{kind}": partial(of_evidence, kind) for kind in KINDS},
        **{f"tokens_{kind}": partial(of_tokens, kind) for kind in KINDS},
    }
    return bootstrap(statistics, groups, resamples=resamples, seed=seed)


def evidence_statistics(
    processing_class: Any,
    groups: Sequence[Group],
    credit: Sequence[Sequence[Credit]],
    *,
    signed: bool = True,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """`statistics_of` correct and of incorrect rollouts under one method, ready for JSON.

    Args:
        processing_class: Tokenizer or processor of the model.
        groups: The groups.
        credit: The credit of each group's rollouts.
        signed: Whether the sign of the method's evidence refers to the verdict (`Method.signed`).
        seed: Of the bootstrap.

    Returns:
        For `correct` and `incorrect`: the number of `rollouts`, the share with a `fallback` for their references, and,
        where there are rollouts, each statistic with its interval.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, verdict in (("correct", True), ("incorrect", False)):
        chosen = [
            (index, rollout, one)
            for index, (group, of_group) in enumerate(zip(groups, credit, strict=True))
            for place, (rollout, one) in enumerate(zip(group.rollouts, of_group, strict=True))
            if group.attempts[group.first + place].correct is verdict
        ]
        found[name] = {"rollouts": len(chosen)}
        if not chosen:
            continue
        found[name]["fallback"] = fmean(one.references.fallback is not None for _, _, one in chosen)
        read = [RolloutEvidence.of(processing_class, r.ids, c, correct=verdict, group=i) for i, r, c in chosen]
        estimates = statistics_of(read, seed=seed)
        found[name] |= {key: one.as_dict() for key, one in estimates.items() if signed or key != "against"}
    return found
