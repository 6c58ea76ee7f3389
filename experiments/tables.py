"""Write the tables of comparison.md from the JSON results, between `<!-- made: NAME -->` and `<!-- end -->`.

python -m experiments.tables
"""

import argparse
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cepo.compare.statistics import BASE, Estimate, Run, band, percent

from .entropy_matched import MATCHED

PAGE = Path(__file__).parent / "comparison.md"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))


def _result(name: str) -> dict[str, Any]:
    return json.loads(PAGE.with_name(f"{name}.json").read_text(encoding="utf-8"))


def _rate(options: Mapping[str, Any] | None) -> str:
    return "" if options is None else f"{options['learning_rate']:.2g}".replace("e-0", "e-")


def compared(name: str) -> str:
    """Each arm after training, and its differences to GRPO and to the arms of `against`."""
    result = _result(name)
    against = result["against"]
    k = next(row["k"] for row in result["arms"] if row["k"])
    head = ["arm", "rate", "seeds", "final", "minus grpo", *(f"minus {other}" for other in against)]
    rows, secondary = [], []
    for row in result["arms"]:
        to_grpo = row["paired_difference_to_grpo"] or {}
        to_others = (found["final"].get(row["name"]) for found in against.values())
        differences = (percent(difference, signed=True) for difference in (to_grpo.get("final"), *to_others))
        rate = _rate(result["options"].get(row["name"]))
        rows.append([row["name"], rate, str(row["seeds"]), percent(row["final"]), *differences])
        cells = [percent(to_grpo.get(measure), signed=True) for measure in ("average", "early")]
        cells += [percent(row[measure]) for measure in ("sampled", "pass_at")]
        secondary.append([row["name"], *cells, _entropy(result["runs"].get(row["name"], []))])
    names = ["arm", "average, minus grpo", "early, minus grpo", "sampled", f"pass@{k}", "entropy"]
    return f"{_table(head, rows)}\n{_table(names, secondary)}"


def _entropy(runs: list[dict[str, Any]]) -> str:
    """Mean entropy after training at the tokens of the solution [nats], with its interval over seeds."""
    known = [run["after"]["entropy"] for run in runs if (run["after"] or {}).get("entropy") is not None]
    if not known:
        return ""
    found = Estimate.of(known)
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def compared_steps(name: str) -> str:
    """Greedy accuracy of each trained arm over steps, and the difference to GRPO at each step."""
    runs = {
        arm: [Run(run["seed"], run["accuracy"], run["seconds"]) for run in found]
        for arm, found in _result(name)["runs"].items()
        if arm not in (BASE, MATCHED)
    }
    reference = {run.seed: dict(run.accuracy) for run in runs["grpo"]}
    steps = [step for step, _ in band(runs["grpo"])]
    rows = []
    for arm, found in runs.items():
        rows.append([arm, *(percent(estimate.as_dict()) for _, estimate in band(found))])
        if arm != "grpo":
            gaps = [[value - reference[run.seed][step] for step, value in run.accuracy] for run in found]
            estimates = [Estimate.of(values).as_dict() for values in zip(*gaps, strict=True)]
            rows.append(["minus grpo", *(percent(estimate, signed=True) for estimate in estimates)])
    return _table(["arm", *(f"step {step}" for step in steps)], rows)


PARTS: dict[str, Callable[[], str]] = {
    "comparison": partial(compared, "comparison"),
    "comparison_default": partial(compared, "comparison-default"),
    "comparison_longer": partial(compared, "comparison-longer"),
    "comparison_longer_steps": partial(compared_steps, "comparison-longer"),
}


def made(text: str) -> str:
    """The page with its tables made from the results."""
    return re.sub(
        r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{PARTS[m[2]]()}{m[3]}", text, flags=re.S
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    PAGE.write_text(made(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
