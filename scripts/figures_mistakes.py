"""Print what models get wrong in the figures task, as a table in Markdown, beside the shipped policy and its teacher.

    python scripts/figures_mistakes.py comparison/grpo/seed-0 comparison/opsd/seed-0

The teacher is the shipped policy told the right answer by cepo's default hint.
"""

import argparse

from cepo.answers import reference_answer
from cepo.commands import quiet_libraries
from cepo.evaluation import evaluate_accuracy
from cepo.hints import add_hint
from cepo.loading import load_policy
from cepo.tasks.figures import policy_path
from cepo.tasks.figures.data import load_figures, problem_of
from cepo.tasks.figures.mistakes import MISTAKES, mistake_shares
from cepo.tasks.figures.verifier import figures_reward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="folders of trained models")
    parser.add_argument("--num_problems", type=int, default=500)
    options = parser.parse_args()
    quiet_libraries()
    plain = load_figures("test", options.num_problems)
    told = plain.map(lambda row: {"prompt": add_hint(row["prompt"], reference_answer(row["solution"]))})
    print(f"| | right | {' | '.join(MISTAKES)} |")
    print("|---" * (2 + len(MISTAKES)) + "|")
    shipped = policy_path()
    rows = [("shipped policy", shipped, plain), ("the same, told the answer", shipped, told)]
    for name, path, dataset in [*rows, *((name, name, plain) for name in options.models)]:
        model, processing_class = load_policy(path)
        accuracy, answers = evaluate_accuracy(model, processing_class, dataset, reward_func=figures_reward, seed=1)
        shares = mistake_shares((problem_of(row), text) for row, text in zip(plain, answers, strict=True))
        cells = " | ".join(f"{100 * share:.1f}" for share in (accuracy.value, *shares.values()))
        print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
