"""`cepo credit`: how well each method finds the tokens that decide a rollout, on the figures task, which knows them.

On other data nobody knows them; then it says how much evidence there is and where, and whether hints are followed.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from ..data.checks import check_dataset
from ..data.files import write_whole
from ..data.images import broken_images_named
from ..data.loading import load_policy, load_reward_funcs
from ..data.sampling import Sampling, sampled_groups, seeded
from ..inspection.console import PlainConsole
from ..inspection.following import Answered, Told, following
from ..inspection.inspect import Inspected, Variant, all_variants, inspect_with
from ..inspection.labelled import COLUMNS as LABELLED_COLUMNS
from ..inspection.labelled import (
    MISTAKE_HEADS,
    MIXTURES,
    ORIGIN_HEADS,
    Rows,
    about_row,
    labelled_rows,
    mistake_cells,
    origin_cells,
)
from ..inspection.quality_picture import draw_credit_quality
from ..inspection.tables import counted, markdown_table
from ..inspection.unlabelled import (
    AMOUNT_HEADS,
    KIND_HEADS,
    Read,
    amount_cells,
    describe,
    kind_cells,
    looked_at,
)
from ..inspection.unlabelled import COLUMNS as UNLABELLED_COLUMNS
from ..methods.cscr import HINT_TEMPLATE as CSCR_HINT
from ..methods.cscr import SAID_RIGHT, SAID_WRONG
from ..methods.options import MethodOptions
from ..methods.registry import METHODS, find_method
from ..methods.rlcsd import HINT_TEMPLATE as RLCSD_HINT
from ..methods.rlcsd import asserted
from ..references.groups import Attempt, Group
from ..references.hints import DEFAULT_HINT_TEMPLATE, SOLUTION_HINT_TEMPLATE
from ..scoring.prompts import cut_text
from ..tasks.figures import NAME as FIGURES
from ..tasks.figures import (
    PLAIN_HINT_TEMPLATE,
    policy_path,
)
from . import quiet_libraries
from .options import (
    add_credit,
    add_dataset,
    add_model,
    add_sampling,
    add_verifier,
    check_group_size,
    credit_options,
    load_rows,
    make_command_parser,
    own_method,
    positive,
    verifier_of,
)

# Wordings of the hint: for an answer, and for a text.
Wordings = dict[str, tuple[str, str]]
HINTS: Wordings = {
    "default": (DEFAULT_HINT_TEMPLATE, DEFAULT_HINT_TEMPLATE),
    "plain": (PLAIN_HINT_TEMPLATE, SOLUTION_HINT_TEMPLATE),
}
# What stands in the hint, for the right side and for the wrong one.
CONTENTS = {
    "answer": ("answer", "answer"),
    "rollout": ("rollout", "rollout"),
    "solution": ("solution", "rollout"),
}
CREDIT = ("evidence_clip", "answer_extractor")
_CHUNK = 20  # groups that are read at a time


def make_parser() -> argparse.ArgumentParser:
    parser = make_command_parser(
        "credit",
        "Measure, on the figures task, whether evidence lies on the tokens that decide a rollout. On other data: how "
        "much evidence there is and on which tokens, and whether the model follows what it is told.",
    )
    add_model(parser)
    data = add_dataset(parser)
    data.add_argument("--num_prompts", type=positive, default=200, help="prompts to sample rollouts of")
    sampling = add_sampling(parser, batch_size=128)
    sampling.add_argument("--num_generations", type=positive, default=8, help="rollouts of a prompt")
    add_verifier(sampling)
    add_credit(parser, *CREDIT, "hint_template")
    add = parser.add_argument_group("output").add_argument
    add(
        "--hints", nargs="*", choices=list(HINTS), default=list(HINTS), help="wordings, beside a hint_template of yours"
    )
    add("--contents", nargs="+", choices=list(CONTENTS), default=list(CONTENTS), help="what hints tell")
    add("--methods", nargs="+", choices=list(METHODS), default=None, help="only these (none: all that can be read)")
    add("--method", default=None, help="a method of your own to measure beside ours: package.module:name")
    add("--method_kwargs", default=None, help="constants of --method, as JSON")
    add("--resamples", type=positive, default=1000, help="bootstrap samples for the intervals")
    add(
        "--output_dir",
        type=Path,
        default=Path("credit"),
        help="where credit.json and credit.md go; figures: credit.png too",
    )
    return parser


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Load what the command line names; what is returned measures and gives the exit status.

    Raises:
        ValueError, OSError: For mistakes in options, model or data.
    """
    options = make_parser().parse_args(arguments)
    quiet_libraries()
    credit_options(options, *CREDIT, "hint_template")
    if "method" in own_method(options):
        own = find_method(options.method)
        if own.contexts is None and own.labels is None:
            raise ValueError(f"--method {options.method}: without contexts and labels there is no evidence to measure")
    wordings = {name: HINTS[name] for name in options.hints}
    if options.hint_template is not None:
        wordings["yours"] = (options.hint_template, options.hint_template)
    if not wordings:
        raise ValueError("hints: name one of default and plain, or give a hint_template")
    check_group_size(options.num_generations)
    (reward_func,) = load_reward_funcs(options.reward_funcs or verifier_of(options.dataset_name))
    dataset = load_rows(options, options.num_prompts)
    check_dataset(dataset, needs_solution=True, name=f"the split {options.dataset_split!r}")
    dataset = dataset.select(range(min(options.num_prompts, len(dataset))))
    with broken_images_named(dataset, f"the split {options.dataset_split!r}"):
        rows = list(dataset)
    all_variants(own_method(options), columns=list(rows[0]))  # a method that refuses these data does so before sampling
    model, processing_class = load_policy(
        options.model_name_or_path or policy_path(), trust_remote_code=options.trust_remote_code
    )
    return lambda console: _measure(options, wordings, model, processing_class, rows, reward_func, console)


def _measure(
    options: argparse.Namespace,
    wordings: Wordings,
    model: Any,
    processing_class: Any,
    rows: list[dict[str, Any]],
    reward_func: Callable[..., Any],
    console: Console,
) -> int:
    started = time.monotonic()
    sampling = Sampling(options.max_completion_length, options.temperature, batch_size=options.batch_size)
    with seeded(options.seed), console.status("sampling rollouts"):
        sampled = sampled_groups(
            model,
            processing_class,
            rows,
            options.num_generations,
            sampling,
            reward_func,
            threshold=options.correctness_threshold,
            extractor=options.answer_extractor or "auto",
        )
    # Without right and wrong rollouts in it, a group has no advantage to place.
    groups = [group for group in sampled if any(rollout.advantage for rollout in group.rollouts)]
    right = fmean(attempt.correct is True for group in sampled for attempt in group.attempts)
    console.print(
        f"{len(sampled)} groups of {options.num_generations}, {right:.1%} of the rollouts right, {len(groups)} groups "
        f"with right and wrong ones ({time.monotonic() - started:.0f} s)",
        highlight=False,
    )
    if not groups:
        console.print("Nothing to measure: no group has both right and wrong rollouts.")
        return 1
    labelled = options.dataset_name == FIGURES
    describe_them = labelled_rows(processing_class, groups) if labelled else _unlabelled_rows(processing_class, groups)
    draws = {"resamples": options.resamples, "seed": options.seed}
    results: list[dict[str, Any]] = []
    # A file is as wide as it needs to be.
    page = console if console.is_terminal else PlainConsole(file=console.file, width=170)
    for content, wording in ((content, wording) for content in options.contents for wording in wordings):
        first = wording == next(iter(wordings))
        variants = _variants(options, content, wordings[wording], list(groups[0].row), first=first)
        with console.status(f"reading the rollouts again, told {content}, {wording} hint"):
            inspected = _inspect(options, model, processing_class, groups, variants)
        own = describe_them(draws, content, wording, variants, inspected)
        if not results:  # the others are in credit.md
            for title, heads, left, cells in _tables(own, labelled):
                page.print(_made(f"{title}; told: {content}, {wording} hint; 95 % intervals", heads, left, cells))
        results += own
    told = _told(processing_class, HINTS | wordings) if labelled else _told_greedily(options.contents, wordings)
    asked = sampling if labelled else replace(sampling, temperature=0.0)
    with console.status("does the policy follow hints?"), seeded(options.seed):
        followed = following(
            model,
            processing_class,
            groups,
            told,
            asked,
            reward_func,
            threshold=options.correctness_threshold,
            extractor=options.answer_extractor or "auto",
        )
    page.print(_following_table(followed, asked))
    page.print("\n".join(_columns(labelled)), highlight=False, markup=False)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    result = {
        "model": options.model_name_or_path or "shipped",
        **({} if labelled else {"dataset": options.dataset_name, "split": options.dataset_split}),
        "dataset_config": options.dataset_config or ("default" if labelled else None),
        "groups": len(sampled),
        "groups_with_advantage": len(groups),
        "right": right,
        "num_generations": options.num_generations,
        "seed": options.seed,
        "evidence_clip": MethodOptions(**credit_options(options, *CREDIT)).evidence_clip,
        "hints": wordings,
        "following": followed,
        "seconds": round(time.monotonic() - started, 1),
        "rows": results,
    }
    write_whole(options.output_dir / "credit.json", json.dumps(result, indent=1) + "\n")
    write_whole(options.output_dir / "credit.md", _markdown(results, followed, labelled))
    if labelled:
        draw_credit_quality(results, options.output_dir / "credit.png")
    files = "credit.json, credit.md and credit.png" if labelled else "credit.json and credit.md"
    others = len({(row["content"], row["hint"]) for row in results}) - 1
    elsewhere = f"the tables of {counted(others, 'other hint')} are in credit.md; " if others else ""
    console.print(f"{result['seconds']:.0f} s; {elsewhere}{files} are in {options.output_dir}", highlight=False)
    return 0


def _told_greedily(contents: Sequence[str], wordings: Wordings) -> list[Told]:
    """What is told where a task is not known, and nothing, which is how often both ends come about untold."""
    texts = {"answer": _answer, "rollout": _rollout, "solution": _solution}
    return [
        *(
            Told(f"{content}, {wording}", template[content != "answer"], texts[content])
            for content in contents
            for wording, template in wordings.items()
        ),
        Told("nothing", "{answer}", lambda group, attempt: ""),  # noqa: ARG005
    ]


def _answer(group: Group, attempt: Attempt) -> str:  # noqa: ARG001
    return attempt.answer or ""


def _rollout(group: Group, attempt: Attempt) -> str:  # noqa: ARG001
    return attempt.text


def _solution(group: Group, attempt: Attempt) -> str:
    return group.solution if attempt.correct else attempt.text


def _told(processing_class: Any, wordings: Wordings) -> list[Told]:
    """Everything that a method's hint may tell, in the wordings that there are."""

    def part(name: Literal["prefix", "suffix"], attempt: Attempt) -> str:
        return cut_text(processing_class, attempt.text, name, MethodOptions(method="cepo").content_tokens or 64)

    def prefix(group: Group, attempt: Attempt) -> str:  # noqa: ARG001
        return part("prefix", attempt)

    def suffix(group: Group, attempt: Attempt) -> str:  # noqa: ARG001
        return part("suffix", attempt)

    told = []
    for wording, (of_answer, of_text) in wordings.items():
        told += [
            Told(f"answer, {wording}", of_answer, _answer),
            Told(f"rollout, {wording}", of_text, _rollout),
            Told(f"solution or wrong rollout, {wording}", of_text, _solution),
            Told(f"prefix, {wording}", of_text, prefix, Answered.begins_alike),
            Told(f"suffix, {wording}", of_text, suffix),
        ]
    return [
        *told,
        Told("rollout said to be right (rlcsd)", RLCSD_HINT, lambda group, a: asserted(a.text, a.answer or "")),  # noqa: ARG005
        Told(
            "that it is right, or wrong (cscr)",
            CSCR_HINT,
            lambda group, attempt: SAID_RIGHT if attempt.correct else SAID_WRONG,  # noqa: ARG005
            Answered.turns_out_alike,
        ),
        Told("nothing", "{answer}", lambda group, attempt: "", Answered.turns_out_alike),  # noqa: ARG005
    ]


def _variants(
    options: argparse.Namespace, content: str, wording: tuple[str, str], columns: list[str], *, first: bool
) -> list[Variant]:
    """What is read: every method at first, those with a choice of hint afterwards, and with texts some of CEPO's rules.

    A method whose hint has a wording of its own keeps it, and is not read again. Methods that know what is asked here
    are not asked, unless they are the user's own.
    """
    given = {**credit_options(options, *CREDIT), **own_method(options)}
    own = given.get("method")
    everyone = [
        variant
        for variant in all_variants(given, mixtures=MIXTURES, columns=columns)
        if variant.options.method == own
        or (variant.method.labels is None and (options.methods is None or variant.method.name in options.methods))
    ]
    house = [variant for variant in everyone if variant.options.hint_template == DEFAULT_HINT_TEMPLATE]
    of_answer, of_text = wording
    if content == "answer":
        worded = {variant: variant.with_options(hint_template=of_answer) for variant in house}
        return [worded.get(variant, variant) for variant in everyone if first or variant in worded]
    positive, negative = CONTENTS[content]
    chosen = [v for v in house if v.method.name == "rlsd" or v.rule in ("lowest_reward", "own", "own_or_mixture")]
    return [
        variant.with_options(
            hint_template=of_text,
            positive_content=positive,
            **({} if variant.rule is None else {"negative_content": negative}),
        )
        for variant in chosen
        if "of 2" not in variant.name
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
            temperature=options.temperature or 1.0,
        )
    return inspected


def _unlabelled_rows(processing_class: Any, groups: list[Group]) -> Rows:
    """How much evidence there is, and where, whatever the data."""
    known = [[looked_at(processing_class, rollout.ids) for rollout in group.rollouts] for group in groups]

    def rows(draws, content, wording, variants, inspected) -> list[dict[str, Any]]:
        found = []
        for variant in variants:
            for name, correct in (("right", True), ("wrong", False)):
                chosen = [
                    (index, place, inspected[index][place].credit[variant])
                    for index, group in enumerate(groups)
                    for place, attempt in enumerate(group.attempts)
                    if attempt.correct is correct
                ]
                # GRPO reads nothing, and a verifier that gives parts of a reward may call nobody right.
                if not chosen or not (variant.method.contexts or variant.method.labels):
                    continue
                read = [
                    Read(one.evidence.double().numpy(), one.moved.numpy(), *known[index][place], correct, index)
                    for index, place, one in chosen
                ]
                row = about_row(content, wording, variant, name, [one for _, _, one in chosen])
                about = describe(read, **draws)
                found.append({**row, "signed": variant.method.signed, **about})
        return found

    return rows


def _made(title: str, heads: Sequence[str], left: int, rows: Iterable[list[str]]) -> Table:
    """A table whose first columns are words, and the others numbers."""
    table = Table(title=title)
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place < left else "right")
    for cells in rows:
        table.add_row(*cells)
    return table


def _tables(rows: list[dict[str, Any]], labelled: bool) -> list[tuple[str, Sequence[str], int, list[list[str]]]]:
    """The tables of one content and wording: title, heads, how many columns are words, cells."""
    if labelled:
        return [
            ("evidence at mistakes against filler", MISTAKE_HEADS, 2, [mistake_cells(row) for row in rows]),
            ("mistakes that are beliefs, and mistakes by chance", ORIGIN_HEADS, 2, origin_cells(rows)),
        ]
    return [
        ("how much evidence, and where: mean nats of a token", AMOUNT_HEADS, 2, [amount_cells(row) for row in rows]),
        ("share of all |evidence| / of all tokens", KIND_HEADS, 2, [kind_cells(row) for row in rows]),
    ]


def _columns(labelled: bool) -> tuple[str, ...]:
    """What the columns of the tables are."""
    return LABELLED_COLUMNS if labelled else UNLABELLED_COLUMNS


_FOLLOWING_HEADS = ("told", "right one followed", "wrong one followed")


def _following_cells(row: dict[str, Any]) -> list[str]:
    return [row["name"], *("" if row[s] is None else _percent(row[s]) for s in ("right", "wrong"))]


def _percent(found: dict[str, Any]) -> str:
    return f"{found['accuracy']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"


def _following_table(rows: list[dict[str, Any]], sampling: Sampling) -> Table:
    how = "sampled" if sampling.temperature > 0 else "greedy"
    title = f"does the policy follow what it is told? {how} answers; 95 % intervals"
    return _made(title, _FOLLOWING_HEADS, 1, map(_following_cells, rows))


def _markdown(rows: list[dict[str, Any]], followed: list[dict[str, Any]], labelled: bool) -> str:
    parts = ["# The credit of rollouts\n\n", "\n".join(_columns(labelled)), "\n\nIn brackets: 95 % intervals.\n\n"]
    for told in dict.fromkeys((row["content"], row["hint"]) for row in rows):
        own = [row for row in rows if (row["content"], row["hint"]) == told]
        first, *others = [markdown_table(heads, cells) for _, heads, _, cells in _tables(own, labelled)]
        parts += [f"## told: {told[0]}, {told[1]} hint\n\n{first}\n", *(f"{table}\n" for table in others)]
    parts.append("## Does the policy follow what it is told?\n\n")
    return "".join([*parts, markdown_table(_FOLLOWING_HEADS, [_following_cells(row) for row in followed])])
