"""`cepo train` in processes that are killed with SIGKILL, at a place in the code or at a moment.

Processes are forked from one that has imported everything, so that they start at once.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import numpy
import pandas
import torch
from safetensors.torch import load_file
from transformers import Trainer

from cepo import policy_path

METHODS = (
    *("cepo", "cepo_additive", "rlsd", "grpo", "opsd", "sdpo", "rlcsd", "rlrt", "cscr"),
    *("pbsd", "distilled_rl", "vppo", "oracle"),
)
SMALL = {
    "seed": 5,
    "max_steps": 6,
    "save_steps": 2,
    "save_total_limit": 2,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 16,
    "figures_problems": 5,  # two steps per epoch, which drops a problem
    "eval_problems": 4,
    "eval_sampled_problems": 3,
    "eval_samples": 2,
    "accuracy_every": 2,
    "warmup_steps": 0,
    "learning_rate": 1e-3,
    "reward_funcs": "tests.support.killing.by_length",
    "answer_extractor": "tests.support.killing.last_word",
    "credit_page_steps": 3,
    "log_completions": True,
    "num_completions_to_print": 0,
    "use_cpu": True,
}
# Further options of methods.
OWN = {
    "cepo": {"teacher": "ema", "teacher_ema_decay": 0.5, "evidence_steps": 6},
    "rlsd": {"teacher": "synced", "teacher_sync_steps": 3},
    # Rollouts serve three optimizer steps of two micro-batches, twice: only the last checkpoint is between generations.
    "grpo": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 3,
        "num_iterations": 2,
        "logging_steps": 3,
    },
    "sdpo": {"teacher_ema_decay": 0.5},
    "distilled_rl": {"teacher_model_name_or_path": policy_path()},
}


def by_length(completions, completion_ids, **kwargs):
    """A verdict by token ids, as completions of an untrained policy are seldom correct."""
    return [float(sum(ids) % 2) for ids in completion_ids]


def last_word(text):
    """The last word, as the answer of any text."""
    return text.split()[-1] if text.split() else None


def words(method, **options):
    """A command line that writes to the folder `out`, which pages and model cards name."""
    wanted = {**SMALL, "method": method, **OWN.get(method, {}), **options, "output_dir": "out"}
    return ["train", *(part for name, value in wanted.items() for part in (f"--{name}", str(value)))]


# Where a process can be killed: the function; and whether after it, or with the file that it writes cut in half.
PLACES = {
    "sampling": ("cepo.trainer.cepo_trainer:CEPOTrainer._generate", None),
    "rewards": ("cepo.trainer.cepo_trainer:CEPOTrainer._calculate_rewards", None),
    "teachers": ("cepo.scoring.forward:Scorer.log_probs", None),
    "loss": ("cepo.trainer.cepo_trainer:CEPOTrainer._compute_loss", None),
    "optimizer": ("torch.optim:AdamW.step", "after"),
    "teacher follows": ("cepo.scoring.teacher_weights:TeacherWeights.after_step", "after"),
    "accuracy": ("cepo.commands.accuracy:evaluate", None),
    "page": ("cepo.trainer.samples:write_credit_page", None),
    "rollouts": ("cepo.trainer.samples:save_rows", "after"),
    "saved weights": ("transformers.modeling_utils:safe_save_file", "half"),
    "saved optimizer": ("torch:save", "half"),
    "saved state": ("transformers.trainer_callback:TrainerState.save_to_json", "half"),
    "saved teacher": ("cepo.scoring.teacher_weights:TeacherWeights.save", None),
    "rotation": ("cepo.trainer.checkpoints:rotate_checkpoints", None),
    "after rotation": ("cepo.trainer.checkpoints:rotate_checkpoints", "after"),
    "final model": ("cepo.trainer.cepo_trainer:CEPOTrainer.save_model", None),
    "summary": ("cepo.commands.train:write_whole", None),
}


def _killing_at(place, number):
    """Kill this process at the `number`-th call of a place."""
    path, how = PLACES[place]
    module, _, name = path.partition(":")
    *owners, name = name.split(".")
    owner = import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), 0

    def killed(*args, **kwargs):
        nonlocal calls
        calls += 1
        last = calls == number
        if last and how is None:
            os.kill(os.getpid(), signal.SIGKILL)
        found = original(*args, **kwargs)
        if last and how == "half":
            for file in (Path(arg) for arg in args if isinstance(arg, (str, os.PathLike)) and os.path.isfile(arg)):
                os.truncate(file, file.stat().st_size // 2)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, name, killed)


def _child(arguments, folder, place, number):
    from cepo import cli

    os.chdir(folder)
    with open("log", "a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    if place is not None:
        _killing_at(place, number)
    os._exit(cli.main(arguments))


@cache
def _context():
    context = get_context("forkserver")
    context.set_forkserver_preload(["cepo.commands.train", "tests.support.killing"])
    return context


def run(arguments, folder, place=None, number=1):
    """The exit status of a run in a folder; -9 if it was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    process = _context().Process(target=_child, args=(arguments, str(folder), place, number))
    process.start()
    process.join(300)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"the run did not end: {said(folder)}")
    return process.exitcode


def said(folder):
    """The end of the output of the runs in a folder."""
    return (folder / "log").read_text()[-3000:]


@contextmanager
def started(arguments, folder):
    """The real command, after its first output."""
    folder.mkdir(parents=True, exist_ok=True)
    log, root = folder / "log", Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    with log.open("a") as out:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "cepo.cli", *arguments],
            stdout=out,
            stderr=out,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            cwd=folder,
            start_new_session=True,
        )
    before = log.stat().st_size
    try:
        while log.stat().st_size == before and process.poll() is None:
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


# Comparison -----------------------------------------------------------------------------------------------------------

_SECONDS = ["second", "time", "runtime", "per_sec", "versions", "flos"]
# Newer versions of transformers average the loss since the last start.
_SECONDS += ["train_loss"] if "_initial_global_step" in Trainer._finalize_training.__code__.co_names else []


def outcome(out):
    """The contents of all files of a finished run, without seconds."""
    return {
        str(path.relative_to(out)): _content(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("training_args.bin", "curves.png", "README.md")
    }


def _content(path):
    if path.suffix == ".json":
        found = _without_seconds(json.loads(path.read_text()))
        if path.name == "tokenizer.json":
            found.pop("padding")  # of the last call
        return found
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".parquet":
        return pandas.read_parquet(path).to_dict("list")
    if path.suffix in (".pt", ".pth"):
        return _without_seconds(torch.load(path, weights_only=False))
    return path.read_bytes()


def _without_seconds(found):
    if isinstance(found, dict):
        return {
            key: _without_seconds(value)
            for key, value in found.items()
            if not any(word in str(key) for word in _SECONDS)
        }
    return [_without_seconds(value) for value in found] if isinstance(found, list) else found


def differences(one, other, at=""):
    """Where two results are not bit-identical."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{at}: {sorted(map(str, one.keys() ^ other.keys()))} in one of them alone"]
        return [line for key in one for line in differences(one[key], other[key], f"{at}/{key}")]
    one, other = (part.tolist() if isinstance(part, numpy.ndarray) else part for part in (one, other))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [
            line
            for index, pair in enumerate(zip(one, other, strict=True))
            for line in differences(*pair, f"{at}[{index}]")
        ]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.shape == other.shape and torch.equal(one, other)
    elif isinstance(one, float) and isinstance(other, float):
        same = one == other or (math.isnan(one) and math.isnan(other))
    else:
        same = type(one) is type(other) and one == other
    return [] if same else [f"{at}: {str(one)[:200]} and {str(other)[:200]}"]
