"""`cepo credit`: how well each method finds the tokens that decide a rollout, on the figures task, which knows them."""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from trl.rewards import accuracy_reward

from ..data.loading import load_policy, load_split
from ..data.sampling import Sampling, sample, sampled_groups, seeded
from ..inspection.inspect import Inspected, Variant, all_variants, inspect_with
from ..inspection.quality import Estimate, Tokens, concatenated, measure
from ..inspection.quality_picture import draw_credit_quality
from ..methods.options import MethodOptions
from ..references.answers import final_answer, same_answer
from ..references.choosing import choose_references
from ..references.groups import Group
from ..references.hints import DEFAULT_HINT_TEMPLATE, add_hint, fill_hint
from ..scoring.prompts import text_of, token_texts
from ..tasks.figures import NAME as FIGURES
from ..tasks.figures import PLAIN_HINT_TEMPLATE, TokenKind, group_kinds, policy_path, problem_of
from . import quiet_libraries
from .options import add_credit, add_model, add_sampling, credit_options, make_command_parser, positive

HINTS = {"default": DEFAULT_HINT_TEMPLATE, "plain": PLAIN_HINT_TEMPLATE}
CREDIT = ("evidence_clip",)
MIXTURES = (2, 4)
_CHUNK = 20  # groups that are read at a time
MEASURES = ("auroc", "average_precision", "filler_abs_mean", "wrong_sign", "clipped")


def make_parser() -> argparse.ArgumentParser:
    parser = make_command_parser(
        "credit", "Measure, on the figures task, whether evidence lies on the tokens that decide a rollout."
    )
    add_model(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset_config", default="default", help="variant of the figures task: easy, default, long, hard"
    )
    data.add_argument("--num_prompts", type=positive, default=200, help="prompts to sample rollouts of")
    sampling = add_sampling(parser, batch_size=128)
    sampling.add_argument("--num_generations", type=positive, default=8, help="rollouts of a prompt")
    add_credit(parser, *CREDIT)
    add = parser.add_argument_group("output").add_argument
    add("--hints", nargs="+", choices=list(HINTS), default=list(HINTS), help="wordings of the hint")
    add("--method", default=None, help="a method of your own to measure beside ours: package.module:name")
    add("--resamples", type=positive, default=1000, help="bootstrap samples for the intervals")
    add("--output_dir", type=Path, default=Path("credit"), help="where credit.json, credit.md and credit.png go")
    return parser


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Load what the command line names; what is returned measures and gives the exit status.

    Raises:
        ValueError, OSError: For mistakes in options, model or data.
    """
    options = make_parser().parse_args(arguments)
    quiet_libraries()
    credit_options(options, *CREDIT)
    if options.num_generations < 2:
        raise ValueError("num_generations: a group of one rollout has no advantage to place; take at least 2")
    rows = list(load_split(FIGURES, "test", config=options.dataset_config, size=options.num_prompts))
    model, processing_class = load_policy(options.model_name_or_path or policy_path())
    return lambda console: _measure(options, model, processing_class, rows, console)


def _measure(options, model, processing_class, rows: list[dict[str, Any]], console: Console) -> int:
    started = time.monotonic()
    sampling = Sampling(options.max_completion_length, options.temperature, batch_size=options.batch_size)
    with seeded(options.seed), console.status("sampling rollouts"):
        groups = sampled_groups(model, processing_class, rows, options.num_generations, sampling, accuracy_reward)
    kinds = [
        group_kinds(
            problem_of(row),
            [token_texts(processing_class, rollout.ids) for rollout in group.rollouts],
            [attempt.correct for attempt in group.attempts],
        )
        for row, group in zip(rows, groups, strict=True)
    ]
    # Without right and wrong rollouts in it, a group has no advantage to place.
    mixed = [i for i, group in enumerate(groups) if any(rollout.advantage for rollout in group.rollouts)]
    console.print(
        f"{len(groups)} groups of {options.num_generations}, {len(mixed)} of them with right and wrong rollouts "
        f"({time.monotonic() - started:.0f} s)",
        highlight=False,
    )
    if not mixed:
        console.print("Nothing to measure: no group has both right and wrong rollouts.")
        return 1
    results: list[dict[str, Any]] = []
    followed = {}
    for wording in options.hints:
        variants = _variants(options, HINTS[wording])
        with console.status(f"reading the rollouts again, {wording} hint"):
            inspected = _inspect(options, model, processing_class, [groups[i] for i in mixed], variants)
        results += _rows(options, wording, variants, [groups[i] for i in mixed], [kinds[i] for i in mixed], inspected)
        with console.status(f"does the policy follow the hint? {wording} hint"), seeded(options.seed):
            followed[wording] = _followed(model, processing_class, [groups[i] for i in mixed], HINTS[wording], sampling)
        # A file is as wide as it needs to be.
        page = console if console.is_terminal else Console(file=console.file, width=170)
        page.print(_table(wording, [row for row in results if row["hint"] == wording]))
        told = ", ".join(f"{name} {share:.1%}" for name, share in followed[wording].items())
        console.print(f"the policy, told an answer, ends with it: {told}", highlight=False)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    result = {
        "model": options.model_name_or_path or "shipped",
        "dataset_config": options.dataset_config,
        "groups": len(groups),
        "groups_with_advantage": len(mixed),
        "num_generations": options.num_generations,
        "seed": options.seed,
        "evidence_clip": MethodOptions(**credit_options(options, *CREDIT)).evidence_clip,
        "hints": {wording: HINTS[wording] for wording in options.hints},
        "ends_with_the_answer_told": followed,
        "seconds": round(time.monotonic() - started, 1),
        "rows": results,
    }
    (options.output_dir / "credit.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.output_dir / "credit.md").write_text(_markdown(results))
    draw_credit_quality(results, options.output_dir / "credit.png")
    console.print(
        f"{result['seconds']:.0f} s; credit.json, credit.md and credit.png are in {options.output_dir}", highlight=False
    )
    return 0


def _variants(options: argparse.Namespace, hint: str) -> list[Variant]:
    """Every method that asks teachers, and GRPO, told in one wording where the method's own is the house's."""
    given = {**credit_options(options, *CREDIT), **({} if options.method is None else {"method": options.method})}
    return [
        variant if variant.options.hint_template != DEFAULT_HINT_TEMPLATE else variant.with_options(hint_template=hint)
        for variant in all_variants(given, mixtures=MIXTURES)
    ]


def _inspect(options, model, processing_class, groups: list[Group], variants: list[Variant]) -> list[list[Inspected]]:
    inspected: list[list[Inspected]] = []
    for start in range(0, len(groups), _CHUNK):
        inspected += inspect_with(
            model,
            processing_class,
            groups[start : start + _CHUNK],
            variants,
            max_tokens=options.teacher_batch_tokens,
            seed=str(options.seed),
        )
    return inspected


@dataclass(frozen=True)
class _One:
    """A rollout of a group, its credit, and what its tokens are."""

    group: int
    correct: bool
    inspected: Inspected
    kinds: list[TokenKind]


def _rows(
    options: argparse.Namespace,
    wording: str,
    variants: list[Variant],
    groups: list[Group],
    kinds: list[list[list[TokenKind]]],
    inspected: list[list[Inspected]],
) -> list[dict[str, Any]]:
    everyone = [
        _One(index, attempt.correct, inspected[index][place], kinds[index][place])
        for index, group in enumerate(groups)
        for place, attempt in enumerate(group.attempts)
        if attempt.correct is not None
    ]
    rows = []
    for variant in variants:
        for name, correct in (("correct", True), ("wrong", False)):
            chosen = [one for one in everyone if one.correct == correct]
            credit = [one.inspected.credit[variant] for one in chosen]
            estimates = {
                found: measure(
                    concatenated([_tokens(one, variant, found) for one in chosen]),
                    resamples=options.resamples,
                    seed=options.seed,
                )
                for found in ("decisive", "result", "read")
            }
            rows.append(
                {
                    "hint": wording,
                    "method": variant.method.name,
                    "rule": variant.rule or variant.method.name,
                    "max_negatives": variant.options.max_negatives
                    if variant.rule and "mixture" in variant.rule
                    else None,
                    "name": variant.name,
                    "rollouts": name,
                    "number": len(chosen),
                    "tokens": dict(Counter(kind for one in chosen for kind in one.kinds)),
                    # Teacher passes over a rollout, P_S included; told one answer alone it would be 1.
                    "contexts": fmean(len(one.contexts) for one in credit),
                    "fallback": fmean(one.references.fallback is not None for one in credit),
                    **{measured: _listed(estimates["decisive"][measured]) for measured in MEASURES},
                    "auroc_other_results": _listed(estimates["result"]["auroc"]),
                    "auroc_values_read": _listed(estimates["read"]["auroc"]),
                }
            )
    return rows


def _tokens(one: _One, variant: Variant, found: TokenKind) -> Tokens:
    """The tokens of one rollout that are to be found, and its filler."""
    counted = np.array([kind in (found, "filler") for kind in one.kinds], dtype=bool)
    credit = one.inspected.credit[variant]
    return Tokens(
        credit.evidence.double().numpy()[counted],
        credit.at_bound.numpy()[counted],
        np.array([kind == found for kind in one.kinds], dtype=bool)[counted],
        1 if one.correct else -1,
        np.full(int(counted.sum()), one.group),
    )


def _listed(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _followed(model, processing_class, groups: list[Group], hint: str, sampling: Sampling) -> dict[str, float]:
    """Share of answers, sampled under a hint, that end with the answer that the hint names."""
    told: dict[str, list[tuple[Any, str]]] = {"r+": [], "r-": []}
    for group in groups:
        reference = choose_references(group.attempts, group.solution, rule="most_common")[0]
        told["r+"].append((group.messages, reference.positive))
        told["r-"] += [(group.messages, answer) for answer in reference.negatives]
    shares = {}
    for name, cases in told.items():
        conversations = [add_hint(messages, fill_hint(hint, answer)) for messages, answer in cases]
        texts = [text_of(processing_class, ids) for ids in sample(model, processing_class, conversations, sampling)]
        answers = [final_answer(text) for text in texts]
        shares[name] = (
            fmean(
                given is not None and same_answer(given, answer)
                for given, (_, answer) in zip(answers, cases, strict=True)
            )
            if cases
            else float("nan")
        )
    return shares


_HEADS = ("rule", "rollouts", "AUROC", "average precision", "filler, nats", "wrong sign", "clipped", "contexts")


def _cells(row: dict[str, Any]) -> list[str]:
    numbers = [_interval(row[name], ".1%" if name in ("wrong_sign", "clipped") else ".3f") for name in MEASURES]
    return [row["name"], row["rollouts"], *numbers, f"{row['contexts']:.1f}"]


def _interval(estimate: dict[str, float], form: str) -> str:
    value, low, high = (format(estimate[part], form) for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _table(wording: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"evidence at decisive tokens against filler, {wording} hint, 95 % intervals")
    for head in _HEADS:
        table.add_column(head, justify="left" if head in ("rule", "rollouts") else "right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = []
    for wording in dict.fromkeys(row["hint"] for row in rows):
        lines += [f"{wording} hint", "", f"| {' | '.join(_HEADS)} |", f"|{'---|' * len(_HEADS)}"]
        lines += [f"| {' | '.join(_cells(row))} |" for row in rows if row["hint"] == wording]
        lines.append("")
    return "\n".join(lines)
