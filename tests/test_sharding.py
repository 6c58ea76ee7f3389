"""Sharded runs against one process: the same recorded rollouts, the same numbers."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

sys.path.insert(0, str(Path(__file__).parent / "sharding"))

from layouts import CASES, LABELED, LAYOUTS, SPOILT, launch, outcome, run

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="no DeepSpeed: pip install '.[deepspeed]'")
EVERYWHERE = [
    pytest.param(layout, count, marks=[pytest.mark.sharded, *([needs_deepspeed] if "zero" in layout else [])])
    for layout in LAYOUTS
    for count in (2, 3)
]
A_FEW = {name: CASES[name] for name in ("grpo-untied", "cepo-ema", "cepo-checkpointing", "sdpo-idle")}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The folder in which the cases of a layout were trained."""
    base, trained = tmp_path_factory.mktemp("sharded"), {}

    def of(cases, layout="", processes=1):
        key = (layout, processes, tuple(cases))
        if key not in trained:
            trained[key] = base / f"{layout or 'one'}-{processes}-{len(trained)}"
            run(trained[key], cases, layout, processes)
        return trained[key]

    return of


def check(one, other):
    """Results equal those of one process to rounding."""
    assert one.shares
    assert other.shares
    assert other.advantages.keys() == one.advantages.keys()
    for key, expected in one.advantages.items():
        torch.testing.assert_close(other.evidence[key], one.evidence[key], atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(other.advantages[key], expected, atol=2e-3, rtol=1e-3)
    for name in ("loss", "grad_norm"):
        found, expected = ([float(entry[name]) for entry in history] for history in (other.history, one.history))
        assert found == pytest.approx(expected, rel=2e-3, abs=2e-6)
    shared = one.weights.keys() & other.weights.keys()
    # A tied head may be saved beside the embedding.
    assert one.weights.keys() ^ shared == set()
    assert other.weights.keys() ^ shared <= {"lm_head.weight"}
    for name in shared:
        # Adam moves a weight by the rate, however small its gradient: where that is rounding, by chance.
        torch.testing.assert_close(other.weights[name], one.weights[name], atol=5e-4, rtol=0)
        assert (other.weights[name] - one.weights[name]).abs().mean() < 2e-6


def test_fsdp_on_two_processes_equals_one_process(folders):
    """TRL's untied head, a lagging teacher, gradient checkpointing, a process without advantages."""
    one, two = folders(A_FEW), folders(A_FEW, "fsdp2", 2)
    for name in A_FEW:
        check(outcome(one, name), outcome(two, name))


@pytest.mark.parametrize(("layout", "processes"), EVERYWHERE)
@pytest.mark.parametrize("name", CASES)
def test_sharded_equals_one_process(folders, layout, processes, name):
    check(outcome(folders(CASES), name), outcome(folders(CASES, layout, processes), name))


@pytest.mark.parametrize("layout", [pytest.param(p.values[0], marks=p.marks) for p in EVERYWHERE if p.values[1] == 3])
@pytest.mark.parametrize("name", LABELED)
def test_token_labels_on_three_processes(folders, layout, name):
    check(outcome(folders(LABELED), name), outcome(folders(LABELED, layout, 3), name))


@pytest.mark.parametrize(("layout", "processes"), EVERYWHERE)
def test_a_nonfinite_gradient_on_one_process_is_skipped_by_all(folders, layout, processes):
    one, many = (outcome(folders(SPOILT, *where), "spoilt") for where in ((), (layout, processes)))
    assert [entry["cepo/skipped_steps"] for entry in many.history] == [0.0, 1.0, 0.0]
    for name, weight in one.weights.items():
        assert weight.isfinite().all()
        torch.testing.assert_close(many.weights[name], weight, atol=5e-4, rtol=0)


@pytest.mark.parametrize(("layout", "processes"), EVERYWHERE)
def test_a_resumed_run_equals_an_uninterrupted_one(folders, layout, processes):
    folder = folders(CASES, layout, processes)
    saved, resumed = (outcome(folder, name) for name in ("saved", "resumed"))
    later = {key: value for key, value in saved.advantages.items() if key[0] >= 2}
    assert resumed.advantages.keys() == later.keys()
    for key, expected in later.items():
        torch.testing.assert_close(resumed.advantages[key], expected, atol=2e-3, rtol=1e-3)
    for name, weight in saved.weights.items():
        torch.testing.assert_close(resumed.weights[name], weight, atol=5e-4, rtol=0)


@pytest.mark.parametrize(("layout", "processes"), EVERYWHERE)
def test_the_teacher_of_a_checkpoint_loads_on_any_number_of_processes(folders, layout, processes):
    file = Path("checkpoint-2") / "teacher.safetensors"
    expected = load_file(outcome(folders(CASES), "saved").folder / file)
    found = load_file(outcome(folders(CASES, layout, processes), "saved").folder / file)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=5e-4, rtol=0)


@pytest.mark.parametrize(("layout", "processes"), EVERYWHERE)
def test_transformers_loads_the_saved_model(folders, layout, processes):
    found = outcome(folders(CASES, layout, processes), "cepo")
    model = AutoModelForImageTextToText.from_pretrained(found.folder)
    own = model.state_dict()
    for name, weight in found.weights.items():
        assert torch.equal(own[name], weight)


def cli(folder, layout, processes, *options):
    """Output of `cepo train`."""
    small = {
        "max_steps": 2,
        "eval_problems": 10,
        "eval_sampled_problems": 4,
        "eval_samples": 2,
        "eval_batch_size": 3,
        "accuracy_every": 1,
        "per_device_train_batch_size": 12 // processes,
        "num_generations": 4,
        "max_completion_length": 110,
        "figures_problems": 20,
        "output_dir": folder,
    }
    flags = [part for name, value in small.items() for part in (f"--{name}", str(value))]
    done = launch("cli.py", ["train", "--use_cpu", "true", *flags, *options], layout, processes)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize(("layout", "processes"), EVERYWHERE)
def test_all_processes_measure_accuracy_together(tmp_path, layout, processes):
    """Greedy accuracy before training equals that of one process; each line is printed once."""
    alone = cli(tmp_path / "one", "", 1, "--method", "cepo")
    together = cli(tmp_path / "many", layout, processes, "--method", "cepo", "--teacher", "initial")
    (expected,), (found,) = (
        [line for line in text.splitlines() if line.startswith("held-out accuracy before training, greedy")]
        for text in (alone, together)
    )
    assert found == expected
    for when in ("before training", "at step 1", "after training"):
        assert together.count(f"held-out accuracy {when}, greedy") == 1
    assert together.count("pass@2") == 2
