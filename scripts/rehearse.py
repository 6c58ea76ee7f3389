"""Rehearse a recipe's step at its size without a GPU: `python -m scripts.rehearse RECIPE ... [--trl] [NAME=VALUE ...]`.

Adds a row to rehearsal/results.json, and writes rehearsal/results.md from all rows. A run takes minutes.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from rehearsal import stub

RESULTS = Path("rehearsal/results.json")
HEAD = """# Recipes on the simulated GPU
Counted by `make rehearse-recipes` ([README](README.md)): the second step, of one rank, with the rollouts given. PFLOP
are those of matrix products, attention (causal attention in full) and convolutions. Memory is what torch's allocator
holds; the CUDA context, cuDNN, NCCL and vLLM come on top. No recipe was run on a GPU. results.json has the commands.

| recipe | layout | rollouts | PFLOP: teachers | update | peak GiB: teachers | update | host waits | GiB sent |
|---|---|---|---|---|---|---|---|---|
"""
UPDATE = ("loss", "update", "gradient norm", "optimizer")
# The rows of the table.
_VL2B, _VL4B, _VL8B, _VL32B = (f"recipes/models/qwen3-vl-{size}-geometry3k.yaml" for size in ("2b", "4b", "8b", "32b"))
_TEXT = "recipes/models/qwen3-1.7b-math.yaml"
_METHOD = {name: f"recipes/methods/{name}.yaml" for name in ("grpo", "cepo", "rlsd", "opsd", "sdpo")}
_ON = {name: f"recipes/hardware/{name}.yaml" for name in ("gpu-24gb", "node-8-full", "nodes", "nodes-64")}
_ALL_WEIGHTS = ["use_peft=false", "learning_rate=1.0e-6"]
RUNS = [
    [_VL2B, _METHOD["grpo"], "--trl"],
    [_VL2B, _METHOD["cepo"]],
    [_VL4B, _METHOD["grpo"], _ON["node-8-full"], "--trl"],
    [_VL4B, _METHOD["cepo"], _ON["node-8-full"]],
    [_VL4B, _METHOD["grpo"], "--trl"],
    [_VL4B, _METHOD["cepo"]],
    [_VL2B, _METHOD["opsd"]],
    [_VL2B, _METHOD["grpo"]],
    [_VL2B, _METHOD["cepo"], _ON["gpu-24gb"]],
    [_TEXT, _METHOD["grpo"], "--trl"],
    [_TEXT, _METHOD["cepo"]],
    [_VL2B, _METHOD["rlsd"]],
    [_VL2B, _METHOD["sdpo"]],
    [_VL4B, _METHOD["cepo"], _ON["nodes"]],
    [_VL2B, _METHOD["grpo"], *_ALL_WEIGHTS, "--trl"],
    [_VL2B, _METHOD["cepo"], *_ALL_WEIGHTS],
    [_VL8B, _METHOD["grpo"], _ON["node-8-full"], "--trl"],
    [_VL8B, _METHOD["cepo"], _ON["node-8-full"]],
    [_VL32B, _METHOD["grpo"], _ON["nodes-64"], "--trl"],
    [_VL32B, _METHOD["cepo"], _ON["nodes-64"]],
    [_VL2B, _METHOD["grpo"], "--trl", "--zero_variance", "2", "5"],
    [_VL2B, _METHOD["cepo"], "--zero_variance", "2", "5"],
]


def row(result: dict[str, Any]) -> str:
    flops, peaks = result["pflop"], result["peak_gib"]
    scores = flops.get("teachers")
    cells = [
        f"`{result['name']}`",
        result["layout"] + (f", {result['ranks']} ranks" if result["ranks"] > 1 else ""),
        result["rollouts"],
        "-" if scores is None else f"{scores:.3f}",
        f"{sum(flops.get(phase, 0) for phase in UPDATE):.3f}",
        f"{peaks['teachers']:.1f}" if "teachers" in peaks and scores else "-",
        f"{max(peaks[phase] for phase in UPDATE if phase in peaks):.1f}",
        str(sum(result["waits"].values())),
        f"{sum(result['sent_gib'].values()):.1f}" if result["ranks"] > 1 else "-",
    ]
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.rehearse", description=__doc__)
    parser.add_argument("recipes", nargs="*", help="files of recipes/, and NAME=VALUE over them; none: all rows")
    parser.add_argument("--trl", action="store_true", help="TRL's GRPOTrainer with the same options")
    parser.add_argument("--lengths", type=float, nargs=2, default=(1500, 400), help="mean and deviation of completions")
    parser.add_argument(
        "--zero_variance", type=int, nargs=2, default=(0, 1), help="zero-variance groups, and all groups"
    )
    args = parser.parse_args()
    if not args.recipes:
        failed = [run for run in RUNS if subprocess.run([sys.executable, "-m", "scripts.rehearse", *run]).returncode]
        raise SystemExit(f"failed: {failed}" if failed else 0)
    stub.restart("scripts.rehearse")
    import yaml
    from rehearsal.scale import rehearse

    files = [Path(part) for part in args.recipes if "=" not in part]
    options = {name: yaml.safe_load(value) for name, _, value in (p.partition("=") for p in args.recipes if "=" in p)}
    found = rehearse(files, options, trl=args.trl, lengths=tuple(args.lengths), zero_variance=tuple(args.zero_variance))
    parts = [*(file.relative_to("recipes").with_suffix("").as_posix() for file in files), *(["TRL"] * args.trl)]
    parts += [part for part in args.recipes if "=" in part]
    if args.zero_variance[0]:
        parts.append("({} of {} groups without variance)".format(*args.zero_variance))
    command = shlex.join(["python", "-m", "scripts.rehearse", *sys.argv[1:]])
    size = f"{args.lengths[0]:.0f} ± {args.lengths[1]:.0f}"
    result = {"name": " ".join(parts), "command": command, "rollouts": f"{found.pop('rollouts')} x {size}", **found}
    print(json.dumps(result, indent=1))
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known = dict(sorted({**known, command: result}.items()))
    RESULTS.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    RESULTS.with_suffix(".md").write_text(HEAD + "".join(map(row, known.values())))


if __name__ == "__main__":
    main()
