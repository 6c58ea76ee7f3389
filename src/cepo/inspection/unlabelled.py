"""What can be said of evidence where nobody knows which tokens decide: how much there is, and where it lies.

Dimensions: N tokens of many rollouts together.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..references.extraction import last_box_place
from ..references.groups import Ids
from ..scoring.prompts import token_texts, tokenizer_of
from .quality import SIGN_TOLERANCE, Floats, bootstrap, weighted_mean
from .tables import interval

# digit: holds a digit. word: holds a letter. sign: anything else that one sees. end: a special token.
Kind = Literal["digit", "word", "sign", "space", "end"]
# Of a rollout that ends with a box. before: the text of the answer has not been written yet. between: from its first
# mention to the box. box: in it. after: behind it. unboxed: the rollout has no box.
Place = Literal["before", "between", "box", "after", "unboxed"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Those at which evidence is reported.
PLACES: tuple[Place, ...] = ("before", "between", "box")


def kind_of(text: str, *, special: bool = False) -> Kind:
    """What a token is, by the text that it adds."""
    if special:
        return "end"
    if any(character.isdigit() for character in text):
        return "digit"
    if any(character.isalpha() for character in text):
        return "word"
    return "sign" if text.strip() else "space"


def places_of(texts: Sequence[str]) -> list[Place]:
    """Where each token of a rollout stands, seen from its final answer.

    An answer may be written by chance, as a number of the question: then `before` ends too early, never too late.
    """
    text = "".join(texts)
    box = last_box_place(text)
    if box is None:
        return ["unboxed"] * len(texts)
    start, end = box
    answer = re.escape(text[start:end].strip())
    mention = re.search(rf"(?<!\w){answer}(?!\w)", text[:end]) if answer else None
    first = start if mention is None else mention.start()
    places: list[Place] = []
    begin = 0
    for piece in texts:
        stop = begin + len(piece)
        if begin >= end:
            places.append("after")
        elif stop > start:
            places.append("box")
        else:
            places.append("between" if stop > first else "before")
        begin = stop
    return places


def looked_at(processing_class: Any, ids: Ids) -> tuple[list[Kind], list[Place]]:
    """Kind and place of each token of a rollout."""
    special = set(tokenizer_of(processing_class).all_special_ids)
    texts = token_texts(processing_class, ids)
    kinds = [kind_of(text, special=number in special) for text, number in zip(texts, ids, strict=True)]
    return kinds, places_of(texts)


@dataclass(frozen=True)
class Read:
    """The tokens of one rollout and their credit.

    Attributes:
        evidence: (T,) [nats].
        moved: (T,) bool: it does not get its rollout's advantage.
        kinds, places: (T,) of each token.
        correct: The verdict.
        group: The index of its group.
    """

    evidence: Floats
    moved: NDArray[np.bool_]
    kinds: Sequence[Kind]
    places: Sequence[Place]
    correct: bool
    group: int


def describe(rollouts: Sequence[Read], *, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """How much evidence these rollouts have, and where.

    Args:
        rollouts: All with the same verdict, or not; at least one.
        resamples, seed: Of the bootstrap over groups.

    Returns:
        Estimates as dictionaries: `moved`, the share of tokens that do not get their rollout's advantage; `abs_mean`,
        mean |evidence| [nats]; `against`, of the tokens with more than `SIGN_TOLERANCE` of it the share that speaks
        against the verdict; `places`, mean |evidence| [nats] at each; `kinds`, of each the shares of all |evidence|
        (`evidence`) and of all tokens (`tokens`).
    """
    evidence = np.concatenate([one.evidence for one in rollouts])
    size = np.abs(evidence)
    sign = np.concatenate([np.full(len(one.evidence), 1 if one.correct else -1) for one in rollouts])
    moved = np.concatenate([one.moved for one in rollouts]).astype(float)
    kinds = np.array([kind for one in rollouts for kind in one.kinds])
    places = np.array([place for one in rollouts for place in one.places])
    groups = np.concatenate([np.full(len(one.evidence), one.group) for one in rollouts])
    against = (sign * evidence < 0).astype(float)

    def mean_at(place: Place, weights: Floats) -> float:
        return weighted_mean(size, weights * (places == place))

    def of_evidence(kind: Kind, weights: Floats) -> float:
        return weighted_mean((kinds == kind).astype(float), weights * size)

    def of_tokens(kind: Kind, weights: Floats) -> float:
        return weighted_mean((kinds == kind).astype(float), weights)

    ways: dict[str, Callable[[Floats], float]] = {
        "moved": lambda weights: weighted_mean(moved, weights),
        "abs_mean": lambda weights: weighted_mean(size, weights),
        "against": lambda weights: weighted_mean(against, weights * (size > SIGN_TOLERANCE)),
        **{f"at {place}": partial(mean_at, place) for place in PLACES},
        **{f"evidence {kind}": partial(of_evidence, kind) for kind in KINDS},
        **{f"tokens {kind}": partial(of_tokens, kind) for kind in KINDS},
    }
    found = {name: one.as_dict() for name, one in bootstrap(ways, groups, resamples=resamples, seed=seed).items()}
    return {
        **{name: found[name] for name in ("moved", "abs_mean", "against")},
        "places": {place: found[f"at {place}"] for place in PLACES},
        "kinds": {kind: {part: found[f"{part} {kind}"] for part in ("evidence", "tokens")} for kind in KINDS},
    }


# What the columns of the tables are, for people.
COLUMNS = (
    "- rule: the method, and whose answer is r-; of 4: at most so many wrong answers in a mixture",
    "- rollouts: the right ones or the wrong ones, and their number",
    "- fallback: the share of rollouts for which the rule could not be followed",
    "- moved: the share of tokens that do not get their rollout's advantage",
    "- evidence, nats: mean |evidence| of a token",
    f"- against: of the tokens with more than {SIGN_TOLERANCE} nats, the share against the verdict; half is chance",
    "- before, between, box: mean |evidence| before the answer is first written, from there to the box, and in it",
    "- digits, words and so on: of each kind its share of all |evidence|, and behind the stroke of all tokens",
)
AMOUNT_HEADS = ("rule", "rollouts", "number", "fallback", "moved", "evidence, nats", "against", *PLACES)
KIND_HEADS = ("rule", "rollouts", *(f"{kind}s" if kind != "end" else kind for kind in KINDS))


def amount_cells(row: dict[str, Any]) -> list[str]:
    """A row of the table of how much evidence there is, and at which places."""
    against = interval(row["against"], ".0%") if row["signed"] else ""
    places = [interval(row["places"][place], ".3f") for place in PLACES]
    moved, size = interval(row["moved"], ".0%"), interval(row["abs_mean"], ".3f")
    named = [row["name"], row["rollouts"], str(row["number"]), f"{row['fallback']:.0%}"]
    return [*named, moved, size, against, *places]


def kind_cells(row: dict[str, Any]) -> list[str]:
    """A row of the table of kinds: of each its share of |evidence|, and that of tokens behind a stroke."""
    shares = []
    for kind in KINDS:
        evidence, tokens = (row["kinds"][kind][part] for part in ("evidence", "tokens"))
        nothing = tokens["value"] is None or evidence["value"] is None
        shares.append("" if nothing else f"{interval(evidence, '.0%')} / {tokens['value']:.0%}")
    return [row["name"], row["rollouts"], *shares]
