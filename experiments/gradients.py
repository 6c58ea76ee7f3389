"""Measure how well each arm's gradient aligns with the true policy gradient, before training.

    python -m experiments.gradients                                             # experiments/gradients.yaml
    python -m experiments.gradients --config experiments/gradients-long.yaml --dataset_config long

Takes the shipped policy and the figures task. Writes gradients.json, gradients.md (tables) and gradients.png.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cepo.commands import quiet_libraries
from cepo.compare.statistics import REFERENCE
from cepo.data.files import write_whole
from cepo.data.loading import load_split
from cepo.data.models import freeze_vision_tower, load_policy
from cepo.data.sampling import Sampling, sampled_groups, seeded
from cepo.data.yaml_files import read_yaml
from cepo.inspection.evidence_statistics import Estimate
from cepo.inspection.pictures import plain_text
from cepo.inspection.tables import interval, markdown_table
from cepo.inspection.view_model import Variant
from cepo.methods.options import OtherModelOptions
from cepo.methods.registry import all_options, method_options, preset_options
from cepo.scoring.pipeline import Pipeline
from cepo.tasks.figures import figures_reward, policy_path

from .alignment import MEASURES, Alignment, Cuts, absolute, align, jackknife, products, ratios, shares
from .batch_gradients import batch_gradients, part_names

_SPLITS = 8  # ways to cut the batches into halves, for Adam's step
_MAX_TOKENS = 16384  # in a forward pass


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    default = Path(__file__).with_name("gradients.yaml")
    add("--config", type=Path, default=default, help="YAML with `arms`: options of cepo train below each name")
    add("--dataset_config", default="default", help="variant of the figures task")
    add("--num_batches", type=int, default=20, help="batches, at least 4")
    add("--num_prompts", type=int, default=8, help="prompts of a batch")
    add("--num_generations", type=int, default=8, help="rollouts of a prompt")
    add("--max_completion_length", type=int, default=256, help="tokens")
    add("--seed", type=int, default=0)
    add("--output_dir", type=Path, default=Path("gradients"))
    return parser


def read_arms(path: Path) -> tuple[list[Variant], list[str]]:
    """The arms of a YAML file, GRPO first, and the names of `against`, to which ratios are reported as well.

    Raises:
        ValueError: Naming the arm and its mistake.
    """
    config = read_yaml(path)
    if not isinstance(config, dict) or not {"arms"} <= set(config) <= {"arms", "against"}:
        raise ValueError(f"--config: {path} must have `arms`, with options below each name, and may have `against`")
    named = {REFERENCE: {"method": REFERENCE}, **config["arms"]}
    against = [name for name in config.get("against") or [] if name != REFERENCE]
    if set(against) - set(named):
        raise ValueError(f"against: choose from {', '.join(named)}")
    variants = []
    for name, given in named.items():
        own = dict(given or {})
        preset = own.pop("preset", None)
        try:
            values = {} if preset is None else preset_options(preset, own.get("method"))
            known = {key: value for key, value in values.items() if key == "method" or key in all_options()}
            options = method_options(**{"method": REFERENCE, **known, **own})
        except (ValueError, TypeError) as error:
            raise ValueError(f"arm {name!r}: {error}") from error
        if isinstance(options, OtherModelOptions):
            raise ValueError(f"arm {name!r}: its teacher is another model, which this study does not load")
        variants.append(Variant(str(name), options))
    return variants, against


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Take all gradients and measure them.

    Returns:
        The content of gradients.json.

    Raises:
        ValueError, OSError: For mistakes in the options or the file.
    """
    started = time.monotonic()
    if options.num_batches < 4:
        raise ValueError("num_batches: take at least 4; halves of the batches are compared with each other")
    variants, against = read_arms(options.config)
    model, processor = load_policy(policy_path())
    freeze_vision_tower(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    prompts = options.num_batches * options.num_prompts
    dataset = load_split("figures", "train", config=options.dataset_config, size=prompts)
    rows = list(dataset.shuffle(seed=options.seed))
    options.output_dir.mkdir(parents=True, exist_ok=True)
    size, count = sum(parameter.numel() for parameter in parameters), 1 + len(variants) + len(part_names())
    needed, free = count * options.num_batches * size * 4, shutil.disk_usage(options.output_dir).free
    if needed > 0.9 * free:
        raise OSError(
            f"output_dir: gradients take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; "
            "take fewer --num_batches"
        )
    print(f"{len(variants)} arms, {size:,} parameters", flush=True)
    with tempfile.TemporaryDirectory(dir=options.output_dir) as folder:
        shape = (count, options.num_batches, size)
        store = np.memmap(Path(folder) / "gradients", dtype=np.float32, mode="w+", shape=shape)
        correct, tokens = collect(options, model, processor, rows, variants, parameters, store)
        cuts = Cuts.draw(options.num_batches, splits=_SPLITS, seed=options.seed)
        found = [products(one, store[0], cuts) for one in store]
        aligned = [align(one, found[0], cuts) for one in found]
        del store
    truth, arms, parts = aligned[0], aligned[1 : 1 + len(variants)], aligned[1 + len(variants) :]
    named = {variant.name: arm for variant, arm in zip(variants, arms, strict=True)}
    grpo = named[REFERENCE]
    return {
        "model": "shipped",
        "dataset": "figures",
        "dataset_config": options.dataset_config,
        "batches": options.num_batches,
        "prompts": options.num_prompts,
        "num_generations": options.num_generations,
        "seed": options.seed,
        "parameters": size,
        "correct": correct,
        # Square norm of the mean over the mean square norm of a batch's gradient.
        "signal_to_square_norm": {"truth": _signal(truth).as_dict(), REFERENCE: _signal(grpo).as_dict()},
        "arms": {v.name: {"method": v.options.method, **v.options.as_dict()} for v in variants},
        "rows": [
            {
                "name": name,
                **_listed(ratios(arm, grpo)),
                "angle": absolute(arm)["angle"].as_dict(),
                "absolute": _listed(absolute(arm)),
                "against": {other: _listed(ratios(arm, named[other])) for other in against},
            }
            for name, arm in named.items()
        ],
        "parts": [
            {"verdict": verdict, "kind": kind, "tokens": number, **_listed(share)}
            for (verdict, kind), number, share in zip(part_names(), tokens, shares(parts, grpo), strict=True)
            if number
        ],
        "seconds": round(time.monotonic() - started, 1),
    }


def collect(
    options: argparse.Namespace, model, processor, rows, variants, parameters, store: np.ndarray
) -> tuple[float, list[int]]:
    """Fill the store batch by batch. Returns the share of correct rollouts, and the number of tokens of each part."""
    sampling = Sampling(options.max_completion_length, 1.0, batch_size=128)
    pipeline = replace(Pipeline.of(model, processor, max_tokens=_MAX_TOKENS), seed=str(options.seed))
    model.eval()
    correct: list[bool] = []
    tokens = np.zeros(len(part_names()), dtype=int)
    for batch in range(options.num_batches):
        first = batch * options.num_prompts
        with seeded(options.seed * 1_000_003 + batch):
            part = rows[first : first + options.num_prompts]
            groups = sampled_groups(model, processor, part, options.num_generations, sampling, figures_reward)
        # A method's random draws for a group depend on its number, which must differ between batches.
        groups = [replace(group, number=first + group.number) for group in groups]
        found = batch_gradients(model, pipeline, groups, variants, parameters, max_tokens=_MAX_TOKENS)
        for place, gradient in enumerate((found.truth, *found.arms, *found.parts)):
            store[place, batch] = gradient.numpy()
        correct += [bool(rollout.correct) for group in groups for rollout in group.rollouts]
        tokens += found.tokens
        print(f"batch {batch + 1} of {options.num_batches}", flush=True)
    return sum(correct) / len(correct), tokens.tolist()


def _signal(one: Alignment) -> Estimate:
    return jackknife(one.mean_square / one.norm**2)


def _listed(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {name: estimate.as_dict() for name, estimate in estimates.items()}


_HEADS = {"alignment": "alignment", "adam": "Adam", "norm": "norm", "angle": "angle, °"}


def tables(rows: Sequence[Mapping[str, Any]], parts: Sequence[Mapping[str, Any]]) -> str:
    """Markdown tables: ratios to GRPO, ratios to each arm of `against`, and the parts of GRPO's gradient."""

    def cell(estimate: Mapping[str, Any], measure: str) -> str:
        return interval(estimate, {"angle": ".0f", "signal": "+.2f"}.get(measure, ".2f"), nothing="-")

    lines = [[row["name"], *(cell(row[measure], measure) for measure in MEASURES)] for row in rows]
    text = [markdown_table(("arm", *_HEADS.values()), lines)]
    for name in rows[0]["against"]:
        some = [measure for measure in MEASURES if measure != "angle"]
        lines = [[row["name"], *(cell(row["against"][name][measure], measure) for measure in some)] for row in rows]
        text.append(markdown_table((f"ratios to {name}", *(_HEADS[measure] for measure in some)), lines))
    lines = [
        [f"{p['kind']}, {p['verdict']}", f"{p['tokens']:,}", *(cell(p[key], key) for key in ("signal", "noise"))]
        for p in parts
    ]
    text.append(markdown_table(("tokens, rollouts", "number", "share of signal", "share of noise"), lines))
    return "\n".join(text)


_PANELS = {
    "alignment": "alignment,\nratio to GRPO",
    "adam": "alignment after Adam,\nratio to GRPO",
    "norm": "norm,\nratio to GRPO",
    "angle": "angle to the true\ngradient, degrees",
}


@plain_text
def draw(rows: list[dict[str, Any]], parts: list[dict[str, Any]], file: Path) -> None:
    """Write gradients.png: the measures of each arm; below, the parts of GRPO's signal and noise."""
    from matplotlib import pyplot

    heights = [0.27 * len(rows) + 0.8, 0.27 * len(parts) + 0.8]
    figure = pyplot.figure(figsize=(10, sum(heights)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=heights)  # type: ignore[misc]
    arms = [row["name"] for row in rows]
    for axis, (measure, title) in zip(above.subplots(1, len(_PANELS), sharey=True), _PANELS.items(), strict=True):
        _intervals(axis, arms, [row[measure] for row in rows], "#2066ba")
        axis.axvline(0 if measure == "angle" else 1, color="#999", linewidth=1)
        axis.set_title(title, fontsize=10)
    kinds = [f"{part['kind']}, {part['verdict']} rollouts" for part in parts]
    for axis, measure in zip(below.subplots(1, 2, sharey=True), ("signal", "noise"), strict=True):
        _intervals(axis, kinds, [part[measure] for part in parts], "#cc6600")
        axis.axvline(0, color="#999", linewidth=1)
        axis.set_title(f"share of GRPO's {measure}", fontsize=10)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _intervals(axis: Any, names: list[str], estimates: list[dict[str, Any]], color: str) -> None:
    """A row for each name, from the top; empty without a value."""
    for place, estimate in enumerate(estimates):
        value, low, high = (estimate[part] for part in ("value", "low", "high"))
        if value is not None:
            error = None if low is None or high is None else [[max(0.0, value - low)], [max(0.0, high - value)]]
            axis.errorbar(value, place, xerr=error, fmt="o", color=color, capsize=3, markersize=4)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(labelsize=9)
    axis.grid(axis="x", color="#e3e6ea")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


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
    print(f"{result['seconds']:.0f} s; wrote gradients.json, gradients.md and gradients.png to {options.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
