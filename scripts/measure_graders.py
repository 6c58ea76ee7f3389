"""Print the tables of docs/graders.md: precision and recall of graders on the labeled answers of tests/data/.

python scripts/measure_graders.py [--show] [FILE]
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from mathruler.grader import extract_boxed_content, grade_answer
from trl.rewards import accuracy_reward

from cepo import final_answer, reference_answer
from cepo.data.rewards import answer_reward

ANSWERS = Path(__file__).parents[1] / "tests/data/answers.jsonl"


def by_answer_reward(completion: str, solution: str) -> bool:
    return answer_reward([[{"role": "assistant", "content": completion}]], [solution]) == [1.0]


def by_accuracy_reward(completion: str, solution: str) -> bool:
    return accuracy_reward([[{"role": "assistant", "content": completion}]], [solution]) == [1.0]


def by_accuracy_reward_wrapped(completion: str, solution: str) -> bool:
    """With the solution's answer in dollar signs, which math-verify parses as LaTeX."""
    return by_accuracy_reward(completion, f"${reference_answer(solution)}$")


def by_mathruler(completion: str, solution: str) -> bool:
    """As in the Geometry3K rewards of EasyR1 and verl."""
    return grade_answer(extract_boxed_content(completion), reference_answer(solution))


def by_mathruler_extracted(completion: str, solution: str) -> bool:
    """mathruler on the answer from `final_answer`."""
    answer = final_answer(completion)
    return answer is not None and grade_answer(answer, reference_answer(solution))


GRADERS: dict[str, Callable[[str, str], bool]] = {
    "TRL `accuracy_reward`": by_accuracy_reward,
    "TRL `accuracy_reward`, solution in dollar signs": by_accuracy_reward_wrapped,
    "`mathruler`": by_mathruler,
    "`mathruler` on the extracted answer": by_mathruler_extracted,
    "`answer_reward`": by_answer_reward,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, default=ANSWERS)
    parser.add_argument("--show", action="store_true", help="print the rows on which answer_reward and label differ")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.file.read_text(encoding="utf-8").splitlines()]
    verdicts = {name: [grade(row["completion"], row["solution"]) for row in rows] for name, grade in GRADERS.items()}
    correct = [row["correct"] for row in rows]
    print(f"{len(rows)} answers, {sum(correct)} correct\n")
    print("| grader | accuracy | precision | recall |\n|---|---|---|---|")
    for name, found in verdicts.items():
        both = sum(a and b for a, b in zip(found, correct, strict=True))
        agree = sum(a == b for a, b in zip(found, correct, strict=True))
        precision, recall = both / max(1, sum(found)), both / max(1, sum(correct))
        print(f"| {name} | {agree / len(rows):.1%} | {precision:.1%} | {recall:.1%} |")
    families: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        families[row["family"]].append(place)
    print("\n| family | answers | " + " | ".join(GRADERS) + " |\n|---|---|" + "---|" * len(GRADERS))
    for family, places in sorted(families.items()):
        cells = [f"{sum(found[p] == correct[p] for p in places)}" for found in verdicts.values()]
        print(f"| {family} | {len(places)} | " + " | ".join(cells) + " |")
    if options.show:
        for place, row in enumerate(rows):
            if verdicts["`answer_reward`"][place] != row["correct"]:
                print(f"\n{row['family']}: label {row['correct']}  {row.get('note', '')}")
                print(f"  solution   {row['solution']!r} -> {reference_answer(row['solution'])!r}")
                print(f"  completion {row['completion'][-300:]!r} -> {final_answer(row['completion'])!r}")


if __name__ == "__main__":
    main()
