"""`cepo gradients`: how near each way of placing credit comes to the true policy gradient, at a fixed policy."""

import argparse
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import nn

from ..compare.statistics import REFERENCE, others_named
from ..data.checks import check_dataset, check_method
from ..data.files import write_whole
from ..data.images import broken_images_named
from ..data.loading import freeze_vision_tower, load_policy, load_reward_funcs
from ..data.sampling import Sampling, sampled_groups, seeded
from ..data.yaml_files import read_yaml
from ..inspection.alignment import MEASURES, Alignment, Cuts, absolute, align, jackknife, products, ratios, shares
from ..inspection.gradients import BatchGradients, batch_gradients, part_names
from ..inspection.gradients_picture import draw_gradients
from ..inspection.inspect import Variant
from ..inspection.quality import Estimate
from ..inspection.tables import interval, markdown_table, plain_table
from ..methods.options import MethodOptions, preset_options
from ..methods.registry import METHODS
from ..scoring.pipeline import Pipeline
from ..tasks.figures import NAME as FIGURES
from ..tasks.figures import policy_path
from . import quiet_libraries
from .options import (
    add_dataset,
    add_model,
    add_sampling,
    add_verifier,
    check_group_size,
    load_rows,
    make_command_parser,
    positive,
    verifier_of,
)

_SPLITS = 8  # ways to cut the batches into halves, for Adam's form


def make_parser() -> argparse.ArgumentParser:
    parser = make_command_parser(
        "gradients",
        "Sample batches of rollouts at a fixed policy, take the gradient of every placement on the same rollouts, and "
        "hold it against the true policy gradient, which other batches estimate.",
    )
    model = add_model(parser)
    model.add_argument(
        "--parameters", default=None, help="regular expression: take only parameters whose names have it (none: all)"
    )
    model.add_argument(
        "--freeze_vision_tower", choices=("true", "false"), default=None, help="(none: true for figures, else false)"
    )
    data = add_dataset(parser, split="train")
    data.add_argument("--num_batches", type=positive, default=20, help="batches, at least 4")
    data.add_argument("--num_prompts", type=positive, default=8, help="prompts of a batch")
    sampling = add_sampling(parser)
    sampling.add_argument("--num_generations", type=positive, default=8, help="rollouts of a prompt")
    sampling.add_argument("--answer_extractor", default="auto", help="how answers are read, as in training")
    add_verifier(sampling)
    add = parser.add_argument_group("placements").add_argument
    add(
        "--config",
        type=Path,
        default=None,
        help="YAML with `placements`: names with options of cepo train below each (none: every method as it comes)",
    )
    add("--batch_tokens", type=positive, default=16384, help="most tokens in a forward pass")
    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, default=Path("gradients"), help="where gradients.json, .md and .png go")
    return parser


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Load what the command line names; what is returned measures and gives the exit status.

    Raises:
        ValueError, OSError: For mistakes in options, model or data.
    """
    options = make_parser().parse_args(arguments)
    quiet_libraries()
    check_group_size(options.num_generations)
    if options.num_batches < 4:
        raise ValueError("num_batches: halves of the batches are held against each other; take at least 4")
    if options.temperature == 0:
        raise ValueError("temperature: greedy answers have no policy gradient; take one above 0")
    (reward_func,) = load_reward_funcs(options.reward_funcs or verifier_of(options.dataset_name))
    wanted = options.num_batches * options.num_prompts
    dataset = load_rows(options, wanted)
    check_dataset(dataset, needs_solution=True, name=f"the split {options.dataset_split!r}")
    if len(dataset) < wanted:
        raise ValueError(
            f"{options.num_batches} batches of {options.num_prompts} prompts need {wanted} rows, and the split "
            f"{options.dataset_split!r} has {len(dataset)}; take fewer with --num_batches"
        )
    # A data set may be sorted, and batches should be alike.
    dataset = dataset.shuffle(seed=options.seed)
    variants, left_out, against = read_placements(options.config, dataset)
    variants = [variant.with_options(answer_extractor=options.answer_extractor) for variant in variants]
    model, processing_class = load_policy(
        options.model_name_or_path or policy_path(), trust_remote_code=options.trust_remote_code
    )
    frozen = options.freeze_vision_tower or ("true" if options.dataset_name == FIGURES else "false")
    if frozen == "true":
        freeze_vision_tower(model)
    parameters = _parameters(model, options.parameters)
    with broken_images_named(dataset, f"the split {options.dataset_split!r}, shuffled"):
        rows = [dataset[index] for index in range(wanted)]
    return lambda console: _measure(
        options, model, processing_class, rows, variants, left_out, against, parameters, reward_func, console
    )


def read_placements(path: Path | None, dataset: Any) -> tuple[list[Variant], list[str], list[str]]:
    """The ways to place credit, GRPO first; why some methods are left out; and what all are held against beside GRPO.

    Args:
        path: A YAML file with `placements`; None: every method as it comes, and GRPO with its blame turned down.
        dataset: The data set; some methods need columns of it.

    Raises:
        ValueError: Naming the placement and what is wrong with it.
    """
    left_out: list[str] = []
    against: list[str] = []
    if path is None:
        named: dict[str, dict[str, Any]] = {"grpo, blame at 0.05": {"negative_advantage_weight": 0.05}}
        for name, method in METHODS.items():
            if method.needs_other_model:
                left_out.append(f"{name} is left out: it needs teacher_model_name_or_path")
                continue
            try:
                check_method(dataset, MethodOptions(method=name))
            except ValueError as error:
                left_out.append(f"{name} is left out: {error}")
                continue
            named[name] = {"method": name}
    else:
        named, against = _read_config(path)
    if REFERENCE in named and named[REFERENCE] not in ({}, {"method": REFERENCE}):
        raise ValueError(f"placement {REFERENCE!r}: that is what all are held against, and has no options of its own")
    named = {REFERENCE: {"method": REFERENCE}, **named}
    variants = []
    for name, own in named.items():
        given = dict(own)
        preset = given.pop("preset", None)
        chosen = given.get("method")
        try:
            beginning = {} if preset is None else preset_options(preset, chosen)
            known = {key: value for key, value in beginning.items() if key in MethodOptions.__dataclass_fields__}
            made = MethodOptions(**{"method": REFERENCE, **known, **given})
            check_method(dataset, made)
        except (ValueError, TypeError) as error:
            raise ValueError(f"placement {name!r}: {error}") from error
        if made.chosen.needs_other_model:
            raise ValueError(f"placement {name!r}: cepo gradients has no other model to ask; leave it out")
        variants.append(Variant(name, made))
    return variants, left_out, against


def _read_config(path: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    config = read_yaml(path)
    known = {"placements"} <= set(config) <= {"placements", "against"}
    placements, against = (config["placements"], config.get("against") or []) if known else (None, [])
    if not isinstance(placements, dict) or not all(isinstance(own or {}, dict) for own in placements.values()):
        raise ValueError(
            f"--config: {path} must hold `placements`, with options below each name, and nothing else but `against`, "
            "a list of their names"
        )
    named = {str(name): own or {} for name, own in placements.items()}
    return named, others_named(against, list(named), "placement", always=[REFERENCE])


def _parameters(model: nn.Module, pattern: str | None) -> list[nn.Parameter]:
    try:
        wanted = re.compile(pattern or "")
    except re.error as error:
        raise ValueError(f"parameters: {pattern!r} is no regular expression: {error}") from error
    named = [(name, parameter) for name, parameter in model.named_parameters() if wanted.search(name)]
    chosen = [parameter for _, parameter in named if parameter.requires_grad]
    if not chosen:
        raise ValueError(f"parameters: no trained parameter has {pattern!r} in its name")
    for parameter in set(model.parameters()) - set(chosen):
        parameter.requires_grad_(False)
    return chosen


def _measure(
    options, model, processing_class, rows, variants, left_out, against, parameters, reward_func, console: Console
) -> int:
    started = time.monotonic()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for line in left_out:
        console.print(line, highlight=False, markup=False)
    size = sum(parameter.numel() for parameter in parameters)
    known = 1 + len(variants) + len(part_names())
    needed = known * options.num_batches * size * 4
    free = shutil.disk_usage(options.output_dir).free
    if needed > 0.9 * free:
        console.print(
            f"{known} gradients of {options.num_batches} batches and {size:,} parameters take {needed / 1e9:.1f} GB in "
            f"{options.output_dir}, where {free / 1e9:.1f} GB are free; take fewer --num_batches, or some of the "
            "--parameters"
        )
        return 1
    console.print(
        f"{options.num_batches} batches of {options.num_prompts} prompts x {options.num_generations} rollouts, "
        f"{len(variants)} placements, {size:,} parameters",
        highlight=False,
    )
    with tempfile.TemporaryDirectory(dir=options.output_dir) as folder:
        store = np.memmap(
            Path(folder) / "gradients", dtype=np.float32, mode="w+", shape=(known, options.num_batches, size)
        )
        right, tokens = _collect(
            options, model, processing_class, rows, variants, parameters, reward_func, store, console
        )
        with console.status("holding them against the truth"):
            cuts = Cuts.draw(options.num_batches, splits=_SPLITS, seed=options.seed)
            found = [products(one, store[0], cuts) for one in store[: len(store) if tokens else 1 + len(variants)]]
            aligned = [align(one, found[0], cuts) for one in found]
        del store
    truth, ways, parts = aligned[0], aligned[1 : 1 + len(variants)], aligned[1 + len(variants) :]
    others = {variant.name: way for variant, way in zip(variants, ways, strict=True) if variant.name in against}
    table = [
        {
            "name": variant.name,
            **_listed(ratios(way, ways[0])),
            "angle": absolute(way)["angle"].as_dict(),
            "absolute": _listed(absolute(way)),
            "against": {name: _listed(ratios(way, others[name])) for name in against},
        }
        for variant, way in zip(variants, ways, strict=True)
    ]
    split = (
        [
            {"verdict": verdict, "kind": kind, "tokens": count, **_listed(share)}
            for (verdict, kind), count, share in zip(part_names(), tokens, shares(parts, ways[0]), strict=True)
            if count
        ]
        if tokens
        else []
    )
    result = {
        "model": options.model_name_or_path or "shipped",
        "dataset": options.dataset_name,
        "dataset_config": options.dataset_config,
        "batches": options.num_batches,
        "prompts": options.num_prompts,
        "num_generations": options.num_generations,
        "seed": options.seed,
        "parameters": size,
        "right": right,
        # How much of a batch's gradient is signal: the square norm of the mean over the mean square norm.
        "signal_to_square_norm": {
            "truth": _signal_share(truth).as_dict(),
            REFERENCE: _signal_share(ways[0]).as_dict(),
        },
        "placements": {v.name: v.options.given for v in variants},
        "left_out": left_out,
        "rows": table,
        "parts": split,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_whole(options.output_dir / "gradients.json", json.dumps(result, indent=1) + "\n")
    write_whole(options.output_dir / "gradients.md", _markdown(table, split))
    draw_gradients(table, split, options.output_dir / "gradients.png")
    for shown in _tables(table, split):
        console.print(shown, soft_wrap=False)
    if table[0]["alignment"]["value"] is None:
        console.print("GRPO's own alignment cannot be told from none: take more batches for ratios to it.")
    console.print(
        f"{result['seconds']:.0f} s; gradients.json, gradients.md and gradients.png are in {options.output_dir}",
        highlight=False,
    )
    return 0


def _collect(
    options, model, processing_class, rows, variants, parameters, reward_func, store, console: Console
) -> tuple[float, list[int]]:
    """Fill the store batch by batch. Returns the share of right rollouts, and how many tokens each part has."""
    sampling = Sampling(options.max_completion_length, options.temperature, batch_size=options.batch_size)
    pipeline = replace(
        Pipeline.of(model, processing_class, max_tokens=options.batch_tokens, temperature=options.temperature),
        seed=str(options.seed),
    )
    was_training = model.training
    model.eval()
    right: list[bool] = []
    tokens: list[int] = []
    with console.status("") as status:
        for batch in range(options.num_batches):
            status.update(f"batch {batch + 1} of {options.num_batches}")
            own = rows[batch * options.num_prompts : (batch + 1) * options.num_prompts]
            with seeded(options.seed * 1_000_003 + batch):
                groups = sampled_groups(
                    model,
                    processing_class,
                    own,
                    options.num_generations,
                    sampling,
                    reward_func,
                    threshold=options.correctness_threshold,
                    extractor=options.answer_extractor,
                )
            # A group draws its own way in every batch.
            groups = [replace(group, number=batch * options.num_prompts + group.number) for group in groups]
            found = batch_gradients(
                model,
                pipeline,
                groups,
                variants,
                parameters,
                temperature=options.temperature,
                max_tokens=options.batch_tokens,
            )
            _keep(store, batch, found)
            right += [bool(attempt.correct) for group in groups for attempt in group.attempts]
            tokens = [sum(both) for both in zip(tokens, found.tokens, strict=True)] if tokens else found.tokens
    model.train(was_training)
    return sum(right) / len(right), tokens


def _keep(store: np.ndarray, batch: int, found: BatchGradients) -> None:
    for place, gradient in enumerate((found.truth, *found.placements, *found.parts)):
        store[place, batch] = gradient.numpy()


def _signal_share(one: Alignment) -> Estimate:
    return jackknife(one.mean_square / one.norm**2)


def _listed(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {name: estimate.as_dict() for name, estimate in estimates.items()}


def _against_tables(rows: Sequence[Mapping[str, Any]]) -> list[tuple[list[str], list[list[str]]]]:
    """Heads and rows of a table for each placement that all are held against beside GRPO."""
    measures = ("alignment", "adam", "norm")
    return [
        (
            [f"ratios to {name}", *(_HEADS[measure] for measure in measures)],
            [
                [row["name"], *(interval(row["against"][name][measure], ".2f", nothing="-") for measure in measures)]
                for row in rows
            ],
        )
        for name in rows[0]["against"]
    ]


_HEADS = {"alignment": "alignment", "adam": "Adam", "norm": "norm", "angle": "angle, °"}


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [row["name"], *(interval(row[name], ".0f" if name == "angle" else ".2f", nothing="-") for name in MEASURES)]


def _part_cells(part: Mapping[str, Any]) -> list[str]:
    shares_of = (
        interval(part[name], "+.2f" if name == "signal" else ".2f", nothing="-") for name in ("signal", "noise")
    )
    return [f"{part['kind']}, {part['verdict']}", f"{part['tokens']:,}", *shares_of]


_PART_HEADS = ("tokens, rollouts", "number", "share of signal", "share of noise")


def _placement_table(title: str, heads: Iterable[str]) -> Table:
    shown = plain_table(f"{title}, 95 % intervals")
    shown.add_column("placement", overflow="fold", min_width=20)
    for head in heads:
        shown.add_column(head, no_wrap=True, justify="right")
    return shown


def _tables(rows: Sequence[Mapping[str, Any]], parts: Sequence[Mapping[str, Any]]) -> list[Table]:
    """For a terminal of 80 columns."""
    shown = _placement_table("ratios to GRPO", _HEADS.values())
    for row in rows:
        name, alignment, adam, _, angle = _cells(row)
        norm = "-" if row["norm"]["value"] is None else f"{row['norm']['value']:.2f}"
        shown.add_row(name, alignment, adam, norm, angle)
    others = []
    for heads, lines in _against_tables(rows):
        beside = _placement_table(heads[0], heads[1:])
        for line in lines:
            beside.add_row(*line)
        others.append(beside)
    if not parts:
        return [shown, *others]
    where = plain_table("where GRPO's gradient is")
    for head in _PART_HEADS:
        where.add_column(head, no_wrap=True, justify="left" if head == _PART_HEADS[0] else "right")
    for part in parts:
        where.add_row(*_part_cells(part))
    return [shown, *others, where]


def _markdown(rows: Sequence[Mapping[str, Any]], parts: Sequence[Mapping[str, Any]]) -> str:
    text = markdown_table(("placement", *_HEADS.values()), map(_cells, rows))
    for heads, lines in _against_tables(rows):
        text += f"\n{markdown_table(heads, lines)}"
    return f"{text}\n{markdown_table(_PART_HEADS, map(_part_cells, parts))}" if parts else text
