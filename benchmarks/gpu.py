"""Measure on one GPU, in under nine minutes, without network or weights, what the docs call not measured.

    python -m benchmarks.gpu               # writes benchmarks/results/gpu/gpu.json and gpu.md after each part
    python -m benchmarks.gpu --rehearse    # every part with tiny models, on a CPU if there is no GPU

A part that no longer fits into the time is skipped; one that fails is reported, and the others run. The exit status is
1 if one failed.
"""

import argparse
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]


def missing_packages() -> list[str]:
    """Requirements of pyproject.toml, and PEFT, that are not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    missing = []
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["peft"]]:
        try:
            version(re.split(r"[^\w.-]", requirement)[0])
        except PackageNotFoundError:
            missing.append(requirement)
    return missing


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="every part with tiny models, in about two minutes")
    parser.add_argument("--seconds", type=float, default=500, help="limit of all parts together")
    parser.add_argument("--parts", nargs="*", help="default: all")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    options = parser.parse_args()
    if missing := missing_packages():
        print(f"missing packages: {', '.join(missing)}\ninstall them with: pip install {' '.join(map(repr, missing))}")
        return 2
    from .gpu_parts import run  # imports these packages

    return run(options)


if __name__ == "__main__":
    sys.exit(main())
