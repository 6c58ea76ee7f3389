"""Measure the shipped policy's ceiling: supervised training on correct solutions, for as long as `make train` takes.

    python -m experiments.ceiling

Next-token prediction on correct solutions of training problems, with a frozen vision tower. Prints the greedy accuracy
on held-out problems before and after.
"""

import argparse
import time

from scripts.make_figures_policy import Hint, Lesson, learn_solutions

from cepo.data.evaluation import evaluate
from cepo.data.loading import load_split
from cepo.data.models import load_policy
from cepo.data.sampling import Sampling
from cepo.tasks.figures import figures_reward, policy_path

NUMBER = 100  # seed; the lessons of the shipped policy have lower numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="batches of 64 solutions")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--num_problems", type=int, default=400)
    parser.add_argument("--dataset_config", default="default", help="variant of the held-out problems")
    options = parser.parse_args()
    model, processor = load_policy(policy_path())
    held_out = load_split("figures", "test", config=options.dataset_config, size=options.num_problems)

    def greedy(when: str) -> None:
        found = evaluate(model, processor, held_out, Sampling(176, 0.0, batch_size=200), reward_func=figures_reward)
        print(f"greedy accuracy {when}: {found.accuracy} of {options.num_problems} problems", flush=True)

    greedy("before")
    started = time.monotonic()
    lesson = Lesson(options.steps, options.learning_rate, 0.0, 0.0, 0.0, ((Hint(None), 1.0),), digits_weight=3.0)
    model.train()
    learn_solutions(model, processor, lesson, number=NUMBER, batch=64, save=lambda: None, say=print)
    model.eval()
    greedy(f"after {options.steps} steps on correct solutions, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
