r"""Data of your own: a JSONL with images, a reward of your own, and an extractor of answers of your own.

    python examples/your_own_data.py own-data            # writes rows.jsonl, the pictures and run.yaml
    cepo train --config own-data/run.yaml                # from the repository's root: trains on them, 40 seconds
    cepo explain --from own-data/run                     # which tokens got the credit, 12 seconds

The rows are problems of the figures task in foreign columns, so that the shipped policy can learn them on two cores:

    {"question": "What are the angles a b c?", "picture": "pictures/0.png", "key": "62, 75, 43"}
"""

import json
import re
import sys
from pathlib import Path

from cepo import load_figures

RUN = """\
dataset_name: {folder}/rows.jsonl
dataset_columns: {{prompt: question, images: picture, solution: key}}
# The first reward decides what is right: here from 1 on, all angles.
reward_funcs: [examples.your_own_data.share_of_angles]
correctness_threshold: 1.0
# How an answer is read, of completions and of the key alike: r+ and every r- come from it.
answer_extractor: examples.your_own_data.angles
model_name_or_path: {model}
output_dir: {folder}/run
max_steps: 8
per_device_train_batch_size: 32
num_generations: 8
max_completion_length: 176
learning_rate: 1.0e-4
logging_steps: 1
log_completions: true # saved, for cepo explain --from
num_completions_to_print: 2 # of each step; without this line all are printed
eval_problems: 0
bf16: false
report_to: none
"""
_LIST, _NUMBER = re.compile(r"\d+(?:, *\d+)+"), re.compile(r"\d+")


def angles(text):
    """The last list of numbers in a text, as "(62, 75, 43)"; None: there is no answer."""
    found = _LIST.findall(text)
    return f"({', '.join(_NUMBER.findall(found[-1]))})" if found else None


def share_of_angles(completions, solution, **kwargs):
    """A reward in TRL's sense: the share of the angles that are right. The columns of the rows come as arguments."""
    rewards = []
    for completion, key in zip(completions, solution, strict=True):
        right, given = _NUMBER.findall(key), _NUMBER.findall(angles(completion[-1]["content"]) or "")
        same = sum(one == other for one, other in zip(right, given, strict=False))
        rewards.append(same / max(len(right), len(given)))
    return rewards


def main(folder, problems="64"):
    from cepo import policy_path

    folder = Path(folder)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    with (folder / "rows.jsonl").open("w") as rows:
        for number, row in enumerate(load_figures("train", int(problems))):
            picture = f"pictures/{number}.png"  # relative to rows.jsonl
            row["image"].save(folder / picture)
            key = ", ".join(map(str, row["angles"]))
            rows.write(json.dumps({"question": row["prompt"][0]["content"], "picture": picture, "key": key}) + "\n")
    (folder / "run.yaml").write_text(RUN.format(folder=folder, model=policy_path()))
    print(f"cepo train --config {folder / 'run.yaml'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
