r"""Custom data: a JSONL file with images, a custom reward and a custom answer extractor.

    python examples/your_own_data.py own-data            # writes rows.jsonl, pictures and run.yaml
    cepo train --config own-data/run.yaml                # trains on them: 40 seconds
    cepo explain --from own-data/run                     # the credit of each token: 12 seconds

Run from the repository's root. The rows are figures problems in other columns, which the shipped policy can learn:

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
# A rollout is correct if the first reward is at least the threshold: here, if all angles are correct.
reward_funcs: [examples.your_own_data.share_of_angles]
correctness_threshold: 1.0
# Extracts the answers r+ and r- from solutions and completions.
answer_extractor: examples.your_own_data.angles
model_name_or_path: {model}
output_dir: {folder}/run
max_steps: 8
per_device_train_batch_size: 32
num_generations: 8
max_completion_length: 176
learning_rate: 1.0e-4
logging_steps: 1
log_completions: true # for cepo explain --from
num_completions_to_print: 2 # a step; default: all
eval_problems: 0
bf16: false
report_to: none
"""
_LIST, _NUMBER = re.compile(r"\d+(?:, *\d+)+"), re.compile(r"\d+")


def angles(text):
    """The last list of numbers in a text, as "(62, 75, 43)"; None without one."""
    found = _LIST.findall(text)
    return f"({', '.join(_NUMBER.findall(found[-1]))})" if found else None


def share_of_angles(completions, solution, **kwargs):
    """A TRL reward function: the share of correct angles. Columns of the dataset are keyword arguments."""
    rewards = []
    for completion, key in zip(completions, solution, strict=True):
        expected, given = _NUMBER.findall(key), _NUMBER.findall(angles(completion[-1]["content"]) or "")
        equal = sum(one == other for one, other in zip(expected, given, strict=False))
        rewards.append(equal / max(len(expected), len(given)))
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
