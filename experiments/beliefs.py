"""Print the accuracy of models on the figures task, and how often they make the mistakes taught by the warm start.

    python -m experiments.beliefs                  # the shipped policy
    python -m experiments.beliefs cepo-figures     # and a trained model
    python -m experiments.beliefs cepo-figures --variants default    # taught mistakes only: two minutes a model

For each model: accuracy by variant, greedy and of 8 samples, the share of problems whose samples are all correct or all
incorrect (zero-variance groups), and the share of correct readings of each label. Then the number written in each case
with a taught mistake, if the numbers before it are correct.
"""

import argparse
from collections import Counter

from cepo.commands import quiet_libraries
from cepo.data.accuracy import Accuracy, Evaluation
from cepo.data.evaluation import evaluate
from cepo.data.loading import load_split
from cepo.data.models import load_policy
from cepo.data.sampling import Sampling
from cepo.tasks.figures import Case, Problem, annotate, cases_of, figures_reward, policy_path, problem_of

VARIANTS = ("default", "readings", "arithmetic", "easy", "long", "hard", "sparse", "blank")


def numbers_of(problem: Problem, text: str) -> list[str]:
    """The numbers of a completion's steps: known angle, label and result."""
    return [text[span.start : span.end] for span in annotate(problem, text) if span.kind != "answer"]


def written(problem: Problem, case: Case, text: str) -> int | None:
    """A completion's number in a case; None if it is missing or an earlier number of its step is incorrect."""
    numbers = numbers_of(problem, text)[3 * case.step : 3 * case.step + 3]
    before = [(problem.start, *problem.angles)[case.step], problem.labels[case.step]][: 1 + (case.kind == "arithmetic")]
    if numbers[: len(before)] != [str(number) for number in before] or len(numbers) <= len(before):
        return None
    return int(numbers[len(before)])


def case_counts(problems: list[Problem], found: Evaluation) -> dict[str, Counter]:
    """For each kind of case, counts of the taught, the correct, and other numbers."""
    counts: dict[str, Counter] = {"reading": Counter(), "arithmetic": Counter()}
    for index, text in enumerate(found.answers):
        problem = problems[index // found.samples]
        for case in cases_of(problem):
            number = written(problem, case, text)
            if number is not None:
                names = {case.believed: "taught", case.correct: "correct"}
                counts[case.kind][names.get(number, "other")] += 1
    return counts


def labels_read(problems: list[Problem], found: Evaluation) -> list[float]:
    """The share of answers with a correct reading of the first label, the second, and so on."""
    correct: list[list[bool]] = []
    for problem, text in zip(problems, found.answers, strict=True):
        read = numbers_of(problem, text)[1::3]
        correct += [[] for _ in range(len(problem.labels) - len(correct))]
        for place, label in enumerate(problem.labels):
            correct[place].append(read[place : place + 1] == [str(label)])
    return [sum(one) / len(one) for one in correct]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="folders of trained models")
    parser.add_argument("--num_problems", type=int, default=400)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="default includes the taught mistakes"
    )
    options = parser.parse_args()
    quiet_libraries()
    for name in (policy_path(), *options.models):
        model, processor = load_policy(name)
        print(f"\n{'shipped policy' if name == policy_path() else name}\n")
        print(f"| variant | greedy | sampled | pass@{options.samples} | zero-variance groups | labels read |")
        print("|---|---|---|---|---|---|")
        of_default: list[Evaluation] = []
        problems: list[Problem] = []
        for variant in options.variants:
            data = load_split("figures", "test", config=variant, size=options.num_problems)
            both = [
                evaluate(
                    model,
                    processor,
                    data,
                    Sampling(220, temperature, batch_size=200),
                    samples=options.samples,
                    reward_func=figures_reward,
                )
                for temperature in (0.0, 1.0)
            ]
            asked = [problem_of(row) for row in data]
            if variant == "default":
                of_default, problems = both, asked
            alike = Accuracy(tuple(float(share in (0.0, 1.0)) for share in both[1].accuracy.values))
            cells = (both[0].accuracy, both[1].accuracy, both[1].pass_at(options.samples), alike)
            read = ", ".join(f"{share:.0%}" for share in labels_read(asked, both[0]))
            print(f"| {variant} | {' | '.join(map(str, cells))} | {read} |", flush=True)
        if not problems:
            continue
        print("\n| case | answers | taught number | correct number | cases |\n|---|---|---|---|---|")
        for kind in ("reading", "arithmetic"):
            for which, found in zip(("greedy", "sampled"), of_default, strict=True):
                counts = case_counts(problems, found)[kind]
                total = counts.total()
                shares = [
                    Accuracy((1.0,) * counts[part] + (0.0,) * (total - counts[part])) for part in ("taught", "correct")
                ]
                print(f"| {kind} | {which} | {' | '.join(map(str, shares))} | {total} |", flush=True)
        for wanted, label in ((0, "without a case"), (1, "with one"), (2, "with several")):
            rows = [i for i, problem in enumerate(problems) if min(2, len(cases_of(problem))) == wanted]
            shares = [Accuracy(tuple(found.accuracy.values[i] for i in rows), found.samples) for found in of_default]
            print(f"\nproblems {label} ({len(rows)}): greedy {shares[0]}, sampled {shares[1]}", flush=True)


if __name__ == "__main__":
    main()
