"""Quality and cost of the evidence on correct rollouts by the number of incorrect answers, by count or drawn.

python -m experiments.number_of_negatives                     # the table in credit.md: 200 groups of 8
python -m experiments.number_of_negatives --num_prompts 12    # quick
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from cepo.commands import quiet_libraries
from cepo.data.models import load_policy
from cepo.data.sampling import Sampling, sampled_groups, seeded
from cepo.inspection.inspect import make_variant
from cepo.inspection.tables import interval, markdown_table
from cepo.methods.cepo import METHOD as CEPO
from cepo.methods.cepo import CEPOOptions
from cepo.methods.stages import StageContext, correct_and_incorrect_answers
from cepo.references.groups import References, Rollout
from cepo.tasks.figures import figures_reward, load_figures, policy_path

from .credit_quality import Labeled, inspect_all, labels_of, row_of


def drawn(rollouts: Sequence[Rollout], solution: str, options: CEPOOptions, context: StageContext) -> list[References]:
    """As `own_or_mixture`, but for each correct rollout K of the distinct answers are drawn."""
    every = correct_and_incorrect_answers(rollouts, solution, replace(options, max_negatives=len(rollouts)), context)
    found = []
    for references in every:
        number = min(options.max_negatives, len(references.negatives))
        chosen = context.random.sample(range(len(references.negatives)), number)
        answers = tuple(references.negatives[place] for place in chosen)
        sources = tuple(references.sources[place] for place in chosen)
        found.append(replace(references, negatives=answers, sources=sources))
    return found


METHOD = replace(CEPO, name="cepo_drawn", references=drawn, presets={}, variants=({},))
# Choice, method and K of each row.
ROWS = [("by count", "cepo", k) for k in (1, 2, 4, 8)] + [
    ("drawn", f"{__package__}.number_of_negatives:METHOD", k) for k in (1, 2)
]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_prompts", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap samples for the intervals")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    quiet_libraries()
    model, processor = load_policy(policy_path())
    problems = list(load_figures("test", given.num_prompts))
    with seeded(given.seed):
        sampled = sampled_groups(model, processor, problems, 8, Sampling(256, 1.0, batch_size=128), figures_reward)
    groups = [group for group in sampled if any(rollout.advantage for rollout in group.rollouts)]
    labels = labels_of(processor, groups)
    rows = []
    for choice, method, most in ROWS:
        variant = make_variant(method, {"max_negatives": most}, {})
        inspected = inspect_all(model, processor, groups, [variant], seed=given.seed)
        rollouts = [
            Labeled(index, True, inspected[index].rollouts[place], *labels[index][place])
            for index, group in enumerate(groups)
            for place, rollout in enumerate(group.rollouts)
            if rollout.correct
        ]
        found = row_of(rollouts, variant, "correct", given.resamples, given.seed)
        auroc, wrong = (interval(found[name], form) for name, form in (("auroc", ".3f"), ("wrong_sign", ".1%")))
        rows.append((str(most), choice, f"{found['contexts']:.2f}", auroc, wrong))
        print(*rows[-1], sep="  ", flush=True)
    print(markdown_table(("K", "chosen", "passes per correct rollout", "AUROC", "wrong sign"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
