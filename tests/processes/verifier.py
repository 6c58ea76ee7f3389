"""A verifier that records its inputs, for test_processes.py: `--reward_funcs verifier.judged`."""

import json
import os
import time
from pathlib import Path


def judged(completions, solution, trainer_state, **kwargs):
    """Correct if the length is odd; no verdict for every third solution.

    Outside of training it writes solution and answer as a JSON line to a file of each process in CEPO_TEST_ASKED.
    """
    said = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    if trainer_state.max_steps == 0:  # not training
        with (Path(os.environ["CEPO_TEST_ASKED"]) / os.environ.get("RANK", "0")).open("a") as file:
            file.writelines(f"{json.dumps(pair)}\n" for pair in zip(solution, said, strict=True))
    silent = [sum(map(ord, right)) % 3 == 0 for right in solution]
    return [None if none else float(len(answer) % 2) for none, answer in zip(silent, said, strict=True)]


def breaks(completions, trainer_state, **kwargs):
    """The verifier of process 1 raises at the third step, the others are slow there."""
    if trainer_state.global_step == 2:
        if os.environ.get("RANK") == "1":
            raise RuntimeError("the verifier of process 1 broke")
        time.sleep(1)
    return [float(place % 2) for place in range(len(completions))]
