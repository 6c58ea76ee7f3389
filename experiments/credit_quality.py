"""Measure the evidence of every method against the token labels of the figures task.

    python -m experiments.credit_quality                     # the numbers of credit.md: 200 groups of 8
    python -m experiments.credit_quality --num_prompts 12    # quick

Writes credit.json, credit.md (tables) and credit.png.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from cepo.commands import quiet_libraries
from cepo.data.files import write_whole
from cepo.data.models import load_policy
from cepo.data.sampling import Sampling, sampled_groups, seeded
from cepo.inspection.evidence_statistics import Estimate
from cepo.inspection.inspect import all_variants, inspect_with, make_variant
from cepo.inspection.view_model import InspectedGroup, InspectedRollout, Variant
from cepo.methods.cepo import CEPOOptions
from cepo.references.groups import Group
from cepo.references.hints import DEFAULT_HINT_TEMPLATE, SOLUTION_HINT_TEMPLATE
from cepo.scoring.prompts import token_texts
from cepo.tasks.figures import (
    PLAIN_HINT_TEMPLATE,
    GroupKind,
    figures_reward,
    group_kinds,
    load_figures,
    policy_path,
    problem_of,
)
from cepo.tasks.figures.beliefs import believed_label, believed_result
from cepo.tasks.figures.mistakes import judged_numbers
from cepo.tasks.figures.solutions import annotate, token_spans

from .credit_report import MISTAKES, draw, tables
from .hint_contents import hint_contents_followed
from .quality import Tokens, measure

# Wording: (hint with an answer, hint with a longer text).
HINTS = {
    "default": (DEFAULT_HINT_TEMPLATE, DEFAULT_HINT_TEMPLATE),
    "plain": (PLAIN_HINT_TEMPLATE, SOLUTION_HINT_TEMPLATE),
}
# Content: (hint with r+, hint with r-).
CONTENTS = {"answer": ("answer", "answer"), "rollout": ("rollout", "rollout"), "solution": ("solution", "rollout")}
MIXTURES = (2, 4)
NAN = Estimate(float("nan"), float("nan"), float("nan"))
_CHUNK = 20  # groups


# Token labels ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labeled:
    """A rollout, its credit under each variant, and its token labels.

    Attributes:
        group: Index of its group.
        correct: The verdict.
        inspected: Its credit.
        kinds: (T,) kind of each token.
        taught: (T,) bool, whether the token lies in a mistake that the warm start taught.
    """

    group: int
    correct: bool
    inspected: InspectedRollout
    kinds: list[GroupKind]
    taught: list[bool]


def taught_tokens(row: dict[str, Any], tokens: Sequence[str]) -> list[bool]:
    """Whether each token of a completion lies in a mistake that the warm start taught."""
    problem, text = problem_of(row), "".join(tokens)
    numbers, taught = judged_numbers(problem, text), set()
    for number in numbers:
        step, part = divmod(number.place, 3)
        belief = None
        if number.kind == "reading" and part == 1:
            belief = believed_label(problem.labels[step], step)
        elif number.kind == "arithmetic":
            known, label = (int(other.text) for other in numbers[number.place - 2 : number.place])
            belief = believed_result(known, label, step)
        if not number.correct and number.text == str(belief):
            taught.add(number.span)
    return [span in taught for span in token_spans(annotate(problem, text), tokens)]


def labels_of(processing_class: Any, groups: Sequence[Group]) -> list[list[tuple[list[GroupKind], list[bool]]]]:
    """(kinds, taught) of the tokens of each rollout of each group."""
    found = []
    for group in groups:
        texts = [token_texts(processing_class, rollout.ids) for rollout in group.rollouts]
        kinds = group_kinds(group.row, texts, [rollout.correct for rollout in group.rollouts])
        found.append([(kind, taught_tokens(group.row, text)) for kind, text in zip(kinds, texts, strict=True)])
    return found


def tokens_of(
    rollouts: Sequence[Labeled], variant: Variant, decisive: Sequence[GroupKind], *, taught: bool | None = None
) -> Tokens:
    """The filler tokens and the decisive tokens of correct, or of incorrect rollouts.

    Args:
        rollouts: At least one.
        variant: The method whose evidence is measured.
        decisive: Kinds of decisive tokens.
        taught: True: only mistakes that the warm start taught. False: only other mistakes.
    """
    kinds = np.concatenate([one.kinds for one in rollouts])
    is_decisive = np.isin(kinds, list(decisive))
    if taught is not None:
        is_decisive &= np.concatenate([one.taught for one in rollouts]).astype(bool) == taught
    kept = is_decisive | (kinds == "filler")
    credit = [one.inspected.credit[variant] for one in rollouts]
    return Tokens(
        np.concatenate([one.evidence.double().numpy() for one in credit])[kept],
        is_decisive[kept],
        1 if rollouts[0].correct else -1,
        np.concatenate([np.full(len(one.kinds), one.group) for one in rollouts])[kept],
    )


def row_of(rollouts: Sequence[Labeled], variant: Variant, name: str, resamples: int, seed: int) -> dict[str, Any]:
    """The measures of one variant's evidence on correct, or on incorrect rollouts."""
    credit = [one.inspected.credit[variant] for one in rollouts]

    def measured(decisive: Sequence[GroupKind], taught: bool | None = None) -> dict[str, Any]:
        tokens = tokens_of(rollouts, variant, decisive, taught=taught)
        found = {key: one.as_dict() for key, one in measure(tokens, resamples=resamples, seed=seed).items()}
        if not variant.method.evidence_is_signed:
            found["wrong_sign"] = NAN.as_dict()
        return {"tokens": int(tokens.decisive.sum()), **found}

    mixed = variant.rule == "own_or_mixture" and variant.options.max_negatives == max(MIXTURES)
    row: dict[str, Any] = {
        "method": variant.method.name,
        "rule": variant.rule or variant.method.name,
        "max_negatives": variant.options.max_negatives if variant.rule and "mixture" in variant.rule else None,
        "name": variant.name,
        "rollouts": name,
        "number": len(credit),
        # Scoring passes over a rollout, P_S included.
        "contexts": fmean(len(one.contexts) for one in credit),
        **measured(MISTAKES),
        "tokens": dict(Counter(kind for one in rollouts for kind in one.kinds)),
        **{kind: {key: measured((kind,))[key] for key in ("auroc", "wrong_sign")} for kind in MISTAKES},
    }
    if name == "incorrect" and (mixed or variant.method.name == "rlsd"):
        row["origins"] = {
            f"{kind}, {origin}": {key: measured((kind,), taught)[key] for key in ("tokens", "auroc", "wrong_sign")}
            for kind in MISTAKES
            for origin, taught in (("taught", True), ("other", False))
        }
    return row


# Variants -------------------------------------------------------------------------------------------------------------


def variants_of(content: str, wording: str, *, first: bool) -> list[Variant]:
    """The variants to measure with a content and a wording of the hint.

    Answers, first wording: all. Answers, other wording: methods with the default hint template. Longer texts: of these
    RLSD, and CEPO with three negative rules.
    """
    everything = [
        variant if size is None else make_variant("cepo", {"max_negatives": size}, {"negative_reference": variant.rule})
        for variant in all_variants()
        for size in (MIXTURES if "mixture" in variant.name else (None,))
    ]
    default = [v for v in everything if getattr(v.options, "hint_template", None) == DEFAULT_HINT_TEMPLATE]
    of_answer, of_text = HINTS[wording]
    if content == "answer":
        worded = {variant: variant.with_options(hint_template=of_answer) for variant in default}
        return [worded.get(variant, variant) for variant in everything if first or variant in worded]
    positive, negative = CONTENTS[content]
    chosen = []
    for variant in default:
        if variant.method.name != "rlsd" and variant.rule not in ("lowest_reward", "own", "own_or_mixture"):
            continue
        if "of 2" in variant.name:
            continue
        hinted = variant.with_options(hint_template=of_text, positive_content=positive)
        chosen.append(hinted if variant.rule is None else hinted.with_options(negative_content=negative))
    return chosen


# The command ----------------------------------------------------------------------------------------------------------


def inspect_all(
    model: Any, processing_class: Any, groups: Sequence[Group], variants: Sequence[Variant], *, seed: int
) -> list[InspectedGroup]:
    return [
        one
        for start in range(0, len(groups), _CHUNK)
        for one in inspect_with(
            model, processing_class, groups[start : start + _CHUNK], variants, max_tokens=16384, seed=str(seed)
        )
    ]


def run(num_prompts: int, num_generations: int, resamples: int, hints: Sequence[str], seed: int) -> dict[str, Any]:
    """Sample groups of the shipped policy, score them under every variant, and measure.

    Returns:
        The content of credit.json.

    Raises:
        ValueError: If no group has both correct and incorrect rollouts.
    """
    started = time.monotonic()
    model, processor = load_policy(policy_path())
    sampling = Sampling(256, 1.0, batch_size=128)
    rows = list(load_figures("test", num_prompts))
    with seeded(seed):
        sampled = sampled_groups(model, processor, rows, num_generations, sampling, figures_reward)
    groups = [group for group in sampled if any(rollout.advantage for rollout in group.rollouts)]
    if not groups:
        raise ValueError("no group has both correct and incorrect rollouts; take more --num_prompts")
    labels = labels_of(processor, groups)
    results = []
    for content in CONTENTS:
        for wording in hints:
            variants = variants_of(content, wording, first=wording == hints[0])
            inspected = inspect_all(model, processor, groups, variants, seed=seed)
            rollouts = [
                Labeled(index, rollout.correct, inspected[index].rollouts[place], *labels[index][place])
                for index, group in enumerate(groups)
                for place, rollout in enumerate(group.rollouts)
                if rollout.correct is not None
            ]
            for variant in variants:
                for name, correct in (("correct", True), ("incorrect", False)):
                    chosen = [one for one in rollouts if one.correct == correct]
                    found = row_of(chosen, variant, name, resamples, seed)
                    results.append({"content": content, "hint": wording, **found})
            print(f"scored: {content}, {wording} wording ({time.monotonic() - started:.0f} s)", flush=True)
    with seeded(seed):
        followed = hint_contents_followed(model, processor, groups, HINTS, sampling)
    return {
        "model": "shipped",
        "dataset_config": "default",
        "groups": len(sampled),
        "groups_with_advantage": len(groups),
        "correct": fmean(rollout.correct is True for group in sampled for rollout in group.rollouts),
        "num_generations": num_generations,
        "seed": seed,
        "evidence_clip": CEPOOptions.evidence_clip,
        "hints": {name: HINTS[name] for name in hints},
        "following": followed,
        "seconds": round(time.monotonic() - started, 1),
        "rows": results,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_prompts", type=int, default=200)
    parser.add_argument("--num_generations", type=int, default=8)
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap samples for the intervals")
    parser.add_argument("--hints", nargs="+", choices=list(HINTS), default=list(HINTS), help="wordings of the hint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("credit"))
    options = parser.parse_args(arguments)
    quiet_libraries()
    result = run(options.num_prompts, options.num_generations, options.resamples, options.hints, options.seed)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    write_whole(options.output_dir / "credit.json", json.dumps(result, indent=1) + "\n")
    write_whole(options.output_dir / "credit.md", tables(result))
    draw(result["rows"], options.output_dir / "credit.png")
    print(f"{result['seconds']:.0f} s; wrote credit.json, credit.md and credit.png to {options.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
