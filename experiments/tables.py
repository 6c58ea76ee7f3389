"""Write the tables of docs/results.md and of this directory's pages from the results, between `<!-- table: NAME -->`
and `<!-- end -->`.

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

from . import credit_report, gradients
from .entropy_matched import MATCHED
from .labels import DOWN_WEIGHTED, label

HERE = Path(__file__).parent
PAGES = [HERE.parent / "docs" / "results.md", *(HERE / f"{name}.md" for name in ("comparison", "credit", "gradients"))]


def result_of(name: str) -> dict[str, Any]:
    """The results of a study, from NAME.json."""
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))


def _rate(options: Mapping[str, Any] | None) -> str:
    return "" if options is None else f"{options['learning_rate']:.2g}".replace("e-0", "e-")


def _entropy(runs: list[dict[str, Any]]) -> str:
    """Entropy after training at the tokens that carry the solution [nats], with its interval over seeds."""
    known = [run["after"]["entropy"] for run in runs if (run["after"] or {}).get("entropy") is not None]
    if not known:
        return ""
    found = Estimate.of(known)
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _to_grpo(row: Mapping[str, Any], measure: str = "final") -> str:
    return percent((row["paired_difference_to_grpo"] or {}).get(measure), signed=True)


def compared(name: str) -> str:
    """Each arm of a comparison after training, and its differences to GRPO and to the arms of `against`."""
    result = result_of(name)
    against = result["against"]
    k = next(row["k"] for row in result["arms"] if row["k"])
    head = ["arm", "learning rate", "seeds", "final", "minus GRPO", *(f"minus {label(other)}" for other in against)]
    rows = [
        [
            *(label(row["name"]), _rate(result["options"].get(row["name"])), str(row["seeds"])),
            *(percent(row["final"]), _to_grpo(row)),
            *(percent(found["final"].get(row["name"]), signed=True) for found in against.values()),
        ]
        for row in result["arms"]
    ]
    secondary = [
        [
            *(label(row["name"]), _to_grpo(row, "average"), _to_grpo(row, "early")),
            *(percent(row[measure]) for measure in ("sampled", "pass_at")),
            _entropy(result["runs"].get(row["name"], [])),
        ]
        for row in result["arms"]
    ]
    names = ["arm", "average, minus GRPO", "early, minus GRPO", "sampled", f"pass@{k}", "entropy"]
    return f"{table(head, rows)}\n{table(names, secondary)}"


def outcome() -> str:
    """The main comparison: final accuracy of each trained arm, minus GRPO and minus down-weighted negatives."""
    result = result_of("comparison")
    baseline = result["against"][DOWN_WEIGHTED]["final"]
    rows = [
        [
            *(label(row["name"]), str(row["seeds"]), percent(row["final"]), _to_grpo(row)),
            percent(baseline.get(row["name"]), signed=True),
        ]
        for row in result["arms"]
        if row["name"] not in (BASE, MATCHED)
    ]
    return table(["arm", "seeds", "final, %", "minus GRPO", f"minus {label(DOWN_WEIGHTED)}"], rows)


def settings() -> str:
    """Final differences of the arms that ran in all three settings."""
    named = {
        "`long`, 24 steps": "comparison",
        "`long`, 96 steps": "comparison-longer",
        "`default`, 24 steps": "comparison-default",
    }
    rows = []
    for title, name in named.items():
        result = result_of(name)
        arms = {row["name"]: row for row in result["arms"]}
        baseline = result["against"][DOWN_WEIGHTED]["final"]
        rows.append(
            [
                *(title, percent(arms[DOWN_WEIGHTED]["paired_difference_to_grpo"]["final"], signed=True)),
                *(_to_grpo(arms["cepo_additive"]), percent(baseline["cepo_additive"], signed=True)),
                _to_grpo(arms["cepo"]),
            ]
        )
    head = ["setting", f"{label(DOWN_WEIGHTED)} minus GRPO", "additive evidence minus GRPO"]
    return table([*head, f"additive evidence minus {label(DOWN_WEIGHTED)}", "cepo minus GRPO"], rows)


def compared_steps(name: str) -> str:
    """Greedy accuracy of each trained arm over steps, and the difference to GRPO at each."""
    runs = {
        arm: [Run(run["seed"], run["accuracy"], run["seconds"]) for run in found]
        for arm, found in result_of(name)["runs"].items()
        if arm not in (BASE, MATCHED)
    }
    reference = {run.seed: dict(run.accuracy) for run in runs["grpo"]}
    steps = [step for step, _ in band(runs["grpo"])]
    rows = []
    for arm, found in runs.items():
        rows.append([label(arm), *(percent(estimate.as_dict()) for _, estimate in band(found))])
        if arm != "grpo":
            gaps = [[value - reference[run.seed][step] for step, value in run.accuracy] for run in found]
            ahead = [Estimate.of(values).as_dict() for values in zip(*gaps, strict=True)]
            rows.append(["minus GRPO", *(percent(one, signed=True) for one in ahead)])
    return table(["arm", *(f"step {step}" for step in steps)], rows)


def _cell(estimate: Mapping[str, Any], spec: str) -> str:
    if estimate["value"] is None:
        return ""
    value, low, high = (format(estimate[part], spec) for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def credit() -> str:
    """Each rule for r- and each method with hints that are answers, in the default wording."""
    rows = result_of("credit")["rows"]
    found = {
        (row["name"], row["rollouts"]): row for row in rows if (row["content"], row["hint"]) == ("answer", "default")
    }
    lines = []
    for name in dict.fromkeys(name for name, _ in found):
        if name in ("grpo", "pbsd", "rlrt", "cscr", "cepo most_common") or name.endswith("of 2"):
            continue
        correct, incorrect = found[name, "correct"], found[name, "incorrect"]
        lines.append(
            [
                *(name, _cell(correct["auroc"], ".3f"), _cell(incorrect["auroc"], ".3f")),
                f"{correct['filler_abs_mean']['value']:.3f}",
                *(_cell(incorrect[kind]["wrong_sign"], ".1%") for kind in ("reading", "arithmetic")),
            ]
        )
    head = ["method and rule for r-", "AUROC, correct", "AUROC, incorrect", "filler, nats"]
    return table([*head, "wrong sign, readings", "wrong sign, arithmetic"], lines)


def alignment() -> str:
    """Alignment on `default` and `long` of the arms that the results discuss."""
    short = {row["name"]: row for row in result_of("gradients")["rows"]}
    sparse = {row["name"]: row for row in result_of("gradients-long")["rows"]}
    pairs = [
        (DOWN_WEIGHTED, DOWN_WEIGHTED),
        (None, "cepo_additive"),
        (None, "uniform penalty"),
        (None, "cepo_additive, mixed groups"),
        ("cepo", "cepo"),
        ("rlsd", None),
        ("sdpo", "sdpo"),
        ("oracle, mistakes only", "oracle, mistakes only"),
    ]
    lines = []
    for one, other in pairs:
        here = short.get(one or "")
        there = sparse.get(other or "")
        lines.append(
            [
                label(one or other or ""),
                *(_cell(here[measure], spec) if here else "" for measure, spec in (("adam", ".2f"), ("angle", ".0f"))),
                _cell(there["adam"], ".2f") if there else "",
                _cell(there["against"][DOWN_WEIGHTED]["adam"], ".2f") if there else "",
            ]
        )
    head = ["arm", "`default`: Adam alignment", "angle, °", "`long`: Adam alignment"]
    return table([*head, f"`long`: against {label(DOWN_WEIGHTED)}"], lines)


def credit_tables() -> str:
    """All tables of the study of credit."""
    found = result_of("credit")
    followed = [{**row, "name": label(row["name"])} for row in found["following"]]
    return credit_report.tables({**found, "following": followed}).partition("\n")[2].lstrip()


def gradient_tables(name: str) -> str:
    """All tables of a study of gradients."""
    found = result_of(name)
    rows = [{"against": {}, **row, "name": label(row["name"])} for row in found["rows"]]
    rows = [{**row, "against": {label(arm): of for arm, of in row["against"].items()}} for row in rows]
    return gradients.tables(rows, found["parts"])


PARTS: dict[str, Callable[[], str]] = {
    "outcome": outcome,
    "settings": settings,
    "credit": credit,
    "alignment": alignment,
    "comparison": partial(compared, "comparison"),
    "comparison_default": partial(compared, "comparison-default"),
    "comparison_longer": partial(compared, "comparison-longer"),
    "comparison_longer_steps": partial(compared_steps, "comparison-longer"),
    "credit_tables": credit_tables,
    "gradients": partial(gradient_tables, "gradients"),
    "gradients_long": partial(gradient_tables, "gradients-long"),
}


def made(text: str) -> str:
    """A page with its tables as the results have them."""
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{PARTS[m[2]]()}{m[3]}", text, flags=re.S
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description="Write the tables of the pages from the results.").parse_args()
    for page in PAGES:
        page.write_text(made(page.read_text(encoding="utf-8")), encoding="utf-8")
