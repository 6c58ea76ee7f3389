"""How well does the gradient of each placement of credit align with the true policy gradient, at a fixed policy?

    python -m experiments.gradients --config experiments/gradients.yaml

Leaves gradients.json, gradients.md (tables) and gradients.png. It takes any model and data set, like `cepo explain`.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cepo.commands import quiet_libraries
from cepo.commands.options import (
    add_dataset,
    add_model,
    add_sampling,
    add_verifier,
    check_group_size,
    load_rows,
    positive,
    verifier_of,
)
from cepo.compare.statistics import REFERENCE
from cepo.data.checks import check_dataset, check_method
from cepo.data.files import write_whole
from cepo.data.images import broken_images_named
from cepo.data.loading import freeze_vision_tower, load_policy, load_reward_funcs
from cepo.data.sampling import Sampling, sampled_groups, seeded
from cepo.data.yaml_files import read_yaml
from cepo.inspection.evidence_statistics import Estimate
from cepo.inspection.inspect import Variant
from cepo.inspection.pictures import plain_text
from cepo.inspection.tables import interval, markdown_table
from cepo.methods.options import OtherModelOptions
from cepo.methods.registry import METHODS, all_options, method_options, preset_options
from cepo.scoring.pipeline import Pipeline
from cepo.tasks.figures import NAME as FIGURES
from cepo.tasks.figures import policy_path

from .alignment import MEASURES, Alignment, Cuts, absolute, align, jackknife, products, ratios, shares
from .placement_gradients import batch_gradients, part_names

_SPLITS = 8  # ways to cut the batches into halves, for Adam's form


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = add_model(parser).add_argument
    add("--parameters", default="", help="regular expression: only parameters whose names match")
    add("--freeze_vision_tower", choices=("true", "false"), default=None, help="(none: true for figures, else false)")
    add = add_dataset(parser, split="train").add_argument
    add("--num_batches", type=positive, default=20, help="batches, at least 4")
    add("--num_prompts", type=positive, default=8, help="prompts of a batch")
    sampling = add_sampling(parser)
    sampling.add_argument("--num_generations", type=positive, default=8, help="rollouts of a prompt")
    sampling.add_argument("--answer_extractor", default="auto", help="how answers are extracted, as in training")
    add_verifier(sampling)
    add = parser.add_argument
    add("--config", type=Path, default=None, help="YAML with `placements`: options of cepo train below each name")
    add("--batch_tokens", type=positive, default=16384, help="most tokens in a forward pass")
    add("--output_dir", type=Path, default=Path("gradients"))
    return parser


def read_placements(path: Path | None, dataset: Any) -> tuple[list[Variant], list[str], list[str]]:
    """The placements, GRPO first; why some methods are left out; and the placements to compare with beside GRPO.

    Args:
        path: A YAML file with `placements` and `against`; None: every method with its defaults.
        dataset: The data set; some methods need columns of it.

    Raises:
        ValueError: Naming the placement and its mistake.
    """
    every = {
        "down-weighted negatives": {"negative_advantage_weight": 0.05},
        **{name: {"method": name} for name in METHODS},
    }
    config = {"placements": every} if path is None else read_yaml(path)
    if not isinstance(config, dict) or not {"placements"} <= set(config) <= {"placements", "against"}:
        raise ValueError(
            f"--config: {path} must hold `placements`, with options below each name, and may hold `against`"
        )
    named = {REFERENCE: {"method": REFERENCE}, **config["placements"]}
    against = [name for name in config.get("against") or [] if name != REFERENCE]
    if set(against) - set(named):
        raise ValueError(f"against: choose of {', '.join(named)}")
    variants, left_out = [], []
    for name, given in named.items():
        own = dict(given or {})
        preset = own.pop("preset", None)
        try:
            values = {} if preset is None else preset_options(preset, own.get("method"))
            known = {key: value for key, value in values.items() if key == "method" or key in all_options()}
            options = method_options(**{"method": REFERENCE, **known, **own})
            check_method(dataset, options)
            if isinstance(options, OtherModelOptions):
                raise ValueError("it needs another model")
            variants.append(Variant(str(name), options))
        except (ValueError, TypeError) as error:
            if path is not None:
                raise ValueError(f"placement {name!r}: {error}") from error
            left_out.append(f"{name} is left out: {error}")
    return variants, left_out, against


def chosen_parameters(model: nn.Module, pattern: str) -> list[nn.Parameter]:
    """The trained parameters whose names match; the others are frozen."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if re.search(pattern, name)]
    chosen = [parameter for _, parameter in named if parameter.requires_grad]
    if not chosen:
        raise ValueError(f"parameters: no trained parameter has {pattern!r} in its name")
    for parameter in set(model.parameters()) - set(chosen):
        parameter.requires_grad_(False)
    return chosen


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Take all gradients and measure them. Returns gradients.json.

    Raises:
        ValueError, OSError: For mistakes in options, model or data.
    """
    started = time.monotonic()
    check_group_size(options.num_generations)
    if options.num_batches < 4:
        raise ValueError("num_batches: take at least 4, of which halves are compared with each other")
    if options.temperature == 0:
        raise ValueError("temperature: greedy answers have no policy gradient; take one above 0")
    (reward_func,) = load_reward_funcs(options.reward_funcs or verifier_of(options.dataset_name))
    wanted = options.num_batches * options.num_prompts
    dataset = load_rows(options, wanted)
    check_dataset(dataset, needs_solution=True, name=f"the split {options.dataset_split!r}")
    if len(dataset) < wanted:
        raise ValueError(f"num_batches: {wanted} rows are needed, and {options.dataset_split!r} has {len(dataset)}")
    dataset = dataset.shuffle(seed=options.seed)  # a sorted data set would make unlike batches
    variants, left_out, against = read_placements(options.config, dataset)
    variants = [variant.with_options(answer_extractor=options.answer_extractor) for variant in variants]
    model, processing_class = load_policy(
        options.model_name_or_path or policy_path(), trust_remote_code=options.trust_remote_code
    )
    if (options.freeze_vision_tower or str(options.dataset_name == FIGURES).lower()) == "true":
        freeze_vision_tower(model)
    parameters = chosen_parameters(model, options.parameters)
    with broken_images_named(dataset, f"the split {options.dataset_split!r}, shuffled"):
        rows = [dataset[index] for index in range(wanted)]
    options.output_dir.mkdir(parents=True, exist_ok=True)
    size, count = sum(parameter.numel() for parameter in parameters), 1 + len(variants) + len(part_names())
    needed, free = count * options.num_batches * size * 4, shutil.disk_usage(options.output_dir).free
    if needed > 0.9 * free:
        raise OSError(
            f"output_dir: gradients take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; take fewer "
            "--num_batches, or some of the --parameters"
        )
    print("\n".join([*left_out, f"{len(variants)} placements, {size:,} parameters"]), flush=True)
    with tempfile.TemporaryDirectory(dir=options.output_dir) as folder:
        shape = (count, options.num_batches, size)
        store = np.memmap(Path(folder) / "gradients", dtype=np.float32, mode="w+", shape=shape)
        right, tokens = collect(options, model, processing_class, rows, variants, parameters, reward_func, store)
        cuts = Cuts.draw(options.num_batches, splits=_SPLITS, seed=options.seed)
        found = [products(one, store[0], cuts) for one in store[: len(store) if tokens else 1 + len(variants)]]
        aligned = [align(one, found[0], cuts) for one in found]
        del store
    truth, ways, parts = aligned[0], aligned[1 : 1 + len(variants)], aligned[1 + len(variants) :]
    others = {variant.name: way for variant, way in zip(variants, ways, strict=True) if variant.name in against}
    return {
        "model": options.model_name_or_path or "shipped",
        "dataset": options.dataset_name,
        "dataset_config": options.dataset_config,
        "batches": options.num_batches,
        "prompts": options.num_prompts,
        "num_generations": options.num_generations,
        "seed": options.seed,
        "parameters": size,
        "right": right,
        # The signal in a batch's gradient: the square norm of the mean over the mean square norm.
        "signal_to_square_norm": {"truth": _signal(truth).as_dict(), REFERENCE: _signal(ways[0]).as_dict()},
        "placements": {
            variant.name: {"method": variant.options.method, **variant.options.as_dict()} for variant in variants
        },
        "left_out": left_out,
        "rows": [
            {
                "name": variant.name,
                **_listed(ratios(way, ways[0])),
                "angle": absolute(way)["angle"].as_dict(),
                "absolute": _listed(absolute(way)),
                "against": {name: _listed(ratios(way, others[name])) for name in against},
            }
            for variant, way in zip(variants, ways, strict=True)
        ],
        "parts": [
            {"verdict": verdict, "kind": kind, "tokens": number, **_listed(share)}
            for (verdict, kind), number, share in zip(part_names(), tokens, shares(parts, ways[0]), strict=True)
            if number
        ]
        if tokens
        else [],
        "seconds": round(time.monotonic() - started, 1),
    }


def collect(
    options: argparse.Namespace, model, processing_class, rows, variants, parameters, reward_func, store: np.ndarray
) -> tuple[float, list[int]]:
    """Fill the store batch by batch. Returns the share of correct rollouts, and the number of tokens of each part."""
    sampling = Sampling(options.max_completion_length, options.temperature, batch_size=options.batch_size)
    pipeline = replace(
        Pipeline.of(model, processing_class, max_tokens=options.batch_tokens, temperature=options.temperature),
        seed=str(options.seed),
    )
    model.eval()
    right: list[bool] = []
    tokens: list[int] = []
    for batch in range(options.num_batches):
        first = batch * options.num_prompts
        with seeded(options.seed * 1_000_003 + batch):
            groups = sampled_groups(
                model,
                processing_class,
                rows[first : first + options.num_prompts],
                options.num_generations,
                sampling,
                reward_func,
                threshold=options.correctness_threshold,
                extractor=options.answer_extractor,
            )
        # What a method draws for a group differs between batches.
        groups = [replace(group, number=first + group.number) for group in groups]
        found = batch_gradients(
            model,
            pipeline,
            groups,
            variants,
            parameters,
            temperature=options.temperature,
            max_tokens=options.batch_tokens,
        )
        for place, gradient in enumerate((found.truth, *found.placements, *found.parts)):
            store[place, batch] = gradient.numpy()
        right += [bool(attempt.correct) for group in groups for attempt in group.attempts]
        tokens = [sum(both) for both in zip(tokens, found.tokens, strict=True)] if tokens else found.tokens
        print(f"batch {batch + 1} of {options.num_batches}", flush=True)
    return sum(right) / len(right), tokens


def _signal(one: Alignment) -> Estimate:
    return jackknife(one.mean_square / one.norm**2)


def _listed(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {name: estimate.as_dict() for name, estimate in estimates.items()}


_HEADS = {"alignment": "alignment", "adam": "Adam", "norm": "norm", "angle": "angle, °"}


def tables(rows: Sequence[Mapping[str, Any]], parts: Sequence[Mapping[str, Any]]) -> str:
    """The tables in Markdown: ratios to GRPO, ratios to each placement of `against`, and GRPO's parts."""

    def cell(estimate: Mapping[str, Any], measure: str) -> str:
        return interval(estimate, {"angle": ".0f", "signal": "+.2f"}.get(measure, ".2f"), nothing="-")

    lines = [[row["name"], *(cell(row[measure], measure) for measure in MEASURES)] for row in rows]
    text = [markdown_table(("placement", *_HEADS.values()), lines)]
    for name in rows[0]["against"]:
        some = [measure for measure in MEASURES if measure != "angle"]
        lines = [[row["name"], *(cell(row["against"][name][measure], measure) for measure in some)] for row in rows]
        text.append(markdown_table((f"ratios to {name}", *(_HEADS[measure] for measure in some)), lines))
    if parts:
        lines = [
            [f"{p['kind']}, {p['verdict']}", f"{p['tokens']:,}", *(cell(p[key], key) for key in ("signal", "noise"))]
            for p in parts
        ]
        text.append(markdown_table(("tokens, rollouts", "number", "share of signal", "share of noise"), lines))
    return "\n".join(text)


_PANELS = (
    ("alignment", "alignment with the true gradient, ratio to GRPO"),
    ("adam", "the same after Adam's normalisation"),
    ("norm", "norm, ratio to GRPO"),
    ("angle", "angle between its mean and the truth, degrees"),
)


@plain_text
def draw(rows: list[dict[str, Any]], parts: list[dict[str, Any]], path: Path) -> None:
    """Write the picture: the measures of each placement, and below the parts of GRPO's signal and noise.

    Args:
        rows: `name` and, for each measure, `value`, `low` and `high`.
        parts: `verdict`, `kind`, and `signal` and `noise` in the same form; may be empty.
        path: The PNG file.
    """
    from matplotlib import pyplot

    heights = [0.28 * len(rows) + 0.9, *([0.3 * len(parts) + 0.9] if parts else [])]
    figure = pyplot.figure(figsize=(15, sum(heights)), layout="constrained")
    subfigures = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    axes = subfigures[0].subplots(1, len(_PANELS), sharey=True)
    names = [row["name"] for row in rows]
    for axis, (measure, title) in zip(axes, _PANELS, strict=True):
        for place, row in enumerate(rows):
            _interval(axis, row[measure], place, "#2066ba")
        if measure != "angle":
            axis.axvline(1, color="#999", linewidth=1)
        axis.set(title=title, yticks=range(len(names)), yticklabels=names)
    axes[0].invert_yaxis()
    below = subfigures[1].subplots(1, 2, sharey=True) if parts else []
    labels = [f"{part['kind']}, {part['verdict']} rollouts" for part in parts]
    for axis, measure in zip(below, ("signal", "noise"), strict=False):
        for place, part in enumerate(parts):
            _interval(axis, part[measure], place, "#cc6600")
        axis.axvline(0, color="#999", linewidth=1)
        axis.set(title=f"share of GRPO's {measure}", yticks=range(len(labels)), yticklabels=labels)
    if parts:
        below[0].invert_yaxis()
    for axis in (*axes, *below):
        axis.grid(axis="x", color="#e3e6ea")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_size(9)
        axis.tick_params(labelsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _interval(axis: Any, estimate: dict[str, Any], place: int, colour: str) -> None:
    value, low, high = (estimate[part] for part in ("value", "low", "high"))
    if value is None:
        return
    error = None if low is None or high is None else [[max(0.0, value - low)], [max(0.0, high - value)]]
    axis.errorbar(value, place, xerr=error, fmt="o", color=colour, capsize=3, markersize=4)


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    quiet_libraries()
    try:
        result = run(options)
    except (ValueError, OSError) as error:
        print(f"gradients: error: {error}", file=sys.stderr)
        return 2
    rows, parts = result["rows"], result["parts"]
    write_whole(options.output_dir / "gradients.json", json.dumps(result, indent=1) + "\n")
    write_whole(options.output_dir / "gradients.md", tables(rows, parts))
    draw(rows, parts, options.output_dir / "gradients.png")
    print(tables(rows, parts))
    print(f"{result['seconds']:.0f} s; gradients.json, gradients.md and gradients.png are in {options.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
