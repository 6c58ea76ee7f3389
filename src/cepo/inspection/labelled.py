"""How evidence at mistakes stands against evidence at filler, where a task knows its mistakes: the figures task."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from ..references.groups import Group
from ..scoring.prompts import token_texts
from ..tasks.figures import GroupKind, believed_tokens, group_kinds
from .inspect import Credit, Inspected, Variant
from .quality import SIGN_TOLERANCE, Estimate, Tokens, concatenated, measure
from .tables import interval

# How many wrong answers a mixture may have.
MIXTURES = (2, 4)
NOTHING = Estimate(float("nan"), float("nan"), float("nan"))
MEASURES = ("auroc", "average_precision", "filler_abs_mean", "wrong_sign", "clipped")
# Mistakes of either kind together, and each by itself.
MISTAKES: dict[str, tuple[GroupKind, ...]] = {
    "": ("reading", "arithmetic"),
    "reading": ("reading",),
    "arithmetic": ("arithmetic",),
}


def about_row(content: str, wording: str, variant: Variant, rollouts: str, credit: list[Credit]) -> dict[str, Any]:
    """What a row is about."""
    return {
        "content": content,
        "hint": wording,
        "method": variant.method.name,
        "rule": variant.rule or variant.method.name,
        "max_negatives": variant.options.max_negatives if variant.rule and "mixture" in variant.rule else None,
        "name": variant.name,
        "rollouts": rollouts,
        "number": len(credit),
        # Teacher passes over a rollout, P_S included; told one answer alone it would be 1.
        "contexts": fmean(len(one.contexts) for one in credit),
        "fallback": fmean(one.references.fallback is not None for one in credit),
    }


# What the tables show of (resamples and seed of the bootstrap, content, wording, variants, their credit).
Rows = Callable[[Mapping[str, int], str, str, list[Variant], list[list[Inspected]]], list[dict[str, Any]]]


@dataclass(frozen=True)
class _One:
    """A rollout of a group, its credit, and what its tokens are."""

    group: int
    correct: bool
    inspected: Inspected
    kinds: list[GroupKind]
    believed: list[bool]


def labelled_rows(processing_class: Any, groups: list[Group]) -> Rows:
    """How evidence at mistakes stands against evidence at filler, on the figures task."""
    texts = [[token_texts(processing_class, rollout.ids) for rollout in group.rollouts] for group in groups]
    kinds = [
        group_kinds(group.row, of_group, [attempt.correct for attempt in group.attempts])
        for group, of_group in zip(groups, texts, strict=True)
    ]
    believed = [
        [believed_tokens(group.row, tokens) for tokens in of_group]
        for group, of_group in zip(groups, texts, strict=True)
    ]
    return lambda draws, content, wording, variants, inspected: _rows(
        draws, content, wording, variants, groups, kinds, believed, inspected
    )


def _rows(
    draws: Mapping[str, int],
    content: str,
    wording: str,
    variants: list[Variant],
    groups: list[Group],
    kinds: list[list[list[GroupKind]]],
    believed: list[list[list[bool]]],
    inspected: list[list[Inspected]],
) -> list[dict[str, Any]]:
    everyone = [
        _One(index, attempt.correct, inspected[index][place], kinds[index][place], believed[index][place])
        for index, group in enumerate(groups)
        for place, attempt in enumerate(group.attempts)
        if attempt.correct is not None
    ]
    rows = []
    for variant in variants:
        for name, correct in (("right", True), ("wrong", False)):
            chosen = [one for one in everyone if one.correct == correct]
            credit = [one.inspected.credit[variant] for one in chosen]
            found: dict[str, dict[str, Estimate]] = {
                name: measure(
                    concatenated([_tokens(one, variant, sought) for one in chosen]),
                    **draws,
                )
                for name, sought in {**MISTAKES, "decision": ("decision",)}.items()
            }
            rows.append(
                {
                    **about_row(content, wording, variant, name, credit),
                    "tokens": dict(Counter(kind for one in chosen for kind in one.kinds)),
                    **{measured: found[""][measured].as_dict() for measured in MEASURES},
                    **({} if variant.method.signed else {"wrong_sign": NOTHING.as_dict()}),
                    **{
                        kind: {
                            "auroc": found[kind]["auroc"].as_dict(),
                            "wrong_sign": (found[kind]["wrong_sign"] if variant.method.signed else NOTHING).as_dict(),
                        }
                        for kind in ("reading", "arithmetic")
                    },
                    **({"origins": _origins(draws, chosen, variant)} if not correct and _is_house(variant) else {}),
                    "auroc_nobody_wrong": found["decision"]["auroc"].as_dict(),
                }
            )
    return rows


def _is_house(variant: Variant) -> bool:
    """Whether it is CEPO's default rule, or RLSD, which is told no wrong answer."""
    mixed = variant.rule == "own_or_mixture" and variant.options.max_negatives == max(MIXTURES)
    return mixed or variant.method.name == "rlsd"


def _origins(draws: Mapping[str, int], chosen: list[_One], variant: Variant) -> dict[str, dict[str, Any]]:
    """The measures at mistakes that the warm-start taught and at those made by chance, each kind by itself."""
    found = {}
    for kind in ("reading", "arithmetic"):
        for origin, believed in (("believed", True), ("by chance", False)):
            tokens = concatenated([_tokens(one, variant, (kind,), believed=believed) for one in chosen])
            estimates = measure(tokens, **draws)
            signs = estimates["wrong_sign"] if variant.method.signed else NOTHING
            found[f"{kind}, {origin}"] = {
                "tokens": int(tokens.decisive.sum()),
                "auroc": estimates["auroc"].as_dict(),
                "wrong_sign": signs.as_dict(),
            }
    return found


def _tokens(one: _One, variant: Variant, sought: tuple[GroupKind, ...], *, believed: bool | None = None) -> Tokens:
    """The tokens of one rollout that are to be found, and its filler.

    Args:
        one: The rollout.
        variant: Whose evidence.
        sought: The kinds that are to be found.
        believed: Only those that are beliefs, or only those that are none; None: both.
    """
    counted = np.array(
        [
            kind == "filler" or (kind in sought and believed in (None, held))
            for kind, held in zip(one.kinds, one.believed, strict=True)
        ],
        dtype=bool,
    )
    credit = one.inspected.credit[variant]
    return Tokens(
        credit.evidence.double().numpy()[counted],
        credit.at_bound.numpy()[counted],
        np.array([kind in sought for kind in one.kinds], dtype=bool)[counted],
        1 if one.correct else -1,
        np.full(int(counted.sum()), one.group),
    )


# What the columns of the tables are, for people.
COLUMNS = (
    "- rule: the method, and whose answer is r-; of 4: at most so many wrong answers in a mixture",
    "- rollouts: the right ones or the wrong ones",
    "- AUROC: the chance that a decisive token has more |evidence| than filler has; 0.5: nothing tells them apart",
    "- decisive: in a wrong rollout the wrong digits of its mistakes, in a right one those that a wrong one of its "
    "group got wrong; filler: the words",
    "- of readings, of arithmetic: the same for one kind of mistake",
    "- filler, nats: mean |evidence| at filler, which is noise in the credit",
    f"- wrong sign: the share of decisive tokens with more than {SIGN_TOLERANCE} nats against the verdict",
    "- contexts: how often a rollout is read, once without a hint included",
)
MISTAKE_HEADS = (
    *("rule", "rollouts", "AUROC", "of readings", "of arithmetic", "filler, nats"),
    *("wrong sign, readings", "wrong sign, arithmetic", "contexts"),
)


def mistake_cells(row: dict[str, Any]) -> list[str]:
    """A row of the table of evidence at mistakes."""
    reading, arithmetic = row["reading"], row["arithmetic"]
    aurocs = [interval(one, ".3f") for one in (row["auroc"], reading["auroc"], arithmetic["auroc"])]
    signs = [interval(one["wrong_sign"], ".1%") for one in (reading, arithmetic)]
    filler = interval(row["filler_abs_mean"], ".3f")
    return [row["name"], row["rollouts"], *aurocs, filler, *signs, f"{row['contexts']:.1f}"]


ORIGIN_HEADS = ("rule", "mistakes of wrong rollouts", "tokens", "AUROC", "wrong sign")


def origin_cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of the table of mistakes that are beliefs, and of those by chance."""
    return [
        [row["name"], origin, str(one["tokens"]), interval(one["auroc"], ".3f"), interval(one["wrong_sign"], ".1%")]
        for row in rows
        for origin, one in row.get("origins", {}).items()
    ]
