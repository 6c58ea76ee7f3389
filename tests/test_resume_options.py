"""Options of a resumed run that differ from its checkpoint's are refused by name, or applied."""

import json
import math
import re
import shutil
from dataclasses import fields, replace

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from trl import ModelConfig

from cepo import CEPOConfig, cli, policy_path
from cepo.trainer.arguments import TrainArguments
from cepo.trainer.resume_options import DATA_OPTIONS, FILE, MAY_CHANGE, RunOptions, as_json, changed, options_of
from tests.support.training import half_right, letters, logged, make, train

SMALL = {
    "max_steps": 3,
    "save_steps": 1,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 16,
    "figures_problems": 16,
    "eval_problems": 0,
    "reward_funcs": f"{__name__}.by_length",
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "lr_scheduler_type": "linear",
}


def by_length(completions, completion_ids, **kwargs):
    """About half of each group is correct."""
    return [float(sum(ids) % 2) for ids in completion_ids]


def run(out, **options):
    flags = [part for name, value in {**SMALL, **options}.items() for part in (f"--{name}", str(value))]
    return cli.main(["train", "--output_dir", str(out), *flags])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(out) == 0
    return out


def copied(whole, tmp_path, *steps):
    for step in steps:
        shutil.copytree(whole / f"checkpoint-{step}", tmp_path / "out" / f"checkpoint-{step}")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"learning_rate": 1e-2}, "learning_rate 0.001 (now 0.01)"),
        ({"per_device_train_batch_size": 16}, "per_device_train_batch_size 8 (now 16)"),
        (
            {"gradient_accumulation_steps": 2, "steps_per_generation": 1, "per_device_train_batch_size": 8},
            "gradient_accumulation_steps 1 (now 2)",
        ),
        ({"num_generations": 8}, "num_generations 4 (now 8)"),
        ({"method": "grpo"}, 'method "cepo" (now "grpo")'),
        ({"evidence_clip": 0.3}, "evidence_clip 0.5 (now 0.3)"),
        ({"seed": 1}, "seed 42 (now 1)"),
        ({"temperature": 0.7}, "temperature 1.0 (now 0.7)"),
        ({"weight_decay": 0.1, "max_grad_norm": 0.5}, "weight_decay 0.0 (now 0.1), max_grad_norm 1.0 (now 0.5)"),
        ({"lr_scheduler_type": "cosine"}, 'lr_scheduler_type "linear" (now "cosine")'),
        ({"figures_problems": 15}, "figures_problems 16 (now 15)"),
        ({"dataset_config": "easy"}, 'dataset_config null (now "easy")'),
        ({"reward_funcs": "accuracy_reward"}, f'reward_funcs ["{__name__}.by_length"] (now ["accuracy_reward"])'),
        ({"correctness_threshold": 0.6}, "correctness_threshold 0.5 (now 0.6)"),
        ({"use_peft": True}, 'use_peft false (now "LORA")'),
        ({"dtype": "bfloat16"}, 'dtype "float32" (now "bfloat16")'),
        ({"freeze_vision_tower": False}, "freeze_vision_tower true (now false)"),
    ],
)
def test_options_that_change_the_result_are_refused(whole, tmp_path, capsys, options, shown):
    out = copied(whole, tmp_path, 1)
    capsys.readouterr()
    assert run(out, resume_from_checkpoint=True, **options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"cepo: error: resume_from_checkpoint: {out}/checkpoint-1 was trained with {shown}; give the old value, or "
        f"start a new run in another output_dir from that model (model_name_or_path {out}/checkpoint-1)"
    )
    assert [path.name for path in out.iterdir()] == ["checkpoint-1"]


def test_other_options_are_applied(whole, tmp_path):
    """Saving and logging steps, which transformers would take from the checkpoint, evaluation, and workers."""
    out = copied(whole, tmp_path, 1)
    changes = {"save_steps": 2, "logging_steps": 3, "save_total_limit": 5}
    changes |= {"eval_problems": 2, "eval_samples": 0, "accuracy_every": 1, "dataloader_num_workers": 1}
    assert run(out, resume_from_checkpoint=True, **changes) == 0
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    history = json.loads((out / "checkpoint-3" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 3]
    one, other = load_file(whole / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_size_of_micro_batches_may_change(whole, tmp_path):
    out = copied(whole, tmp_path, 1)
    changes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    assert run(out, resume_from_checkpoint=True, **changes) == 0
    one, other = (json.loads((folder / "checkpoint-3" / "trainer_state.json").read_text()) for folder in (whole, out))
    rewards = [[entry["reward"] for entry in state["log_history"] if "loss" in entry] for state in (one, other)]
    assert rewards[0] == rewards[1]
    assert (one["train_batch_size"], other["train_batch_size"]) == (8, 4)
    one, other = load_file(whole / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_rollouts_of_another_layout_are_sampled_anew(tmp_path, text_figures, text_model_path, caplog):
    """A checkpoint between two generations: its rollouts lie in micro-batches of eight."""
    options = {"max_steps": 4, "steps_per_generation": 2, "save_strategy": "steps", "save_steps": 1, "method": "grpo"}
    train(tmp_path, text_figures, text_model_path, half_right, **options)
    smaller = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    for step, anew in ((1, True), (2, False)):
        caplog.clear()
        resume = {"resume_from_checkpoint": str(tmp_path / "out" / f"checkpoint-{step}")}
        again = train(tmp_path / str(step), text_figures, text_model_path, half_right, **options | smaller | resume)
        assert (
            "of 1 processes in micro-batches of 8, and this run has 1 in micro-batches of 4: they" in caplog.text
        ) == anew
        assert again.state.global_step == 4
        assert len(logged(again, "reward")) == 2 + anew


def test_a_longer_run_follows_the_schedule_of_its_length(whole, tmp_path, capsys):
    """Resumed at the end of a linear schedule, where the rate is 0."""
    out = copied(whole, tmp_path, 3)
    capsys.readouterr()
    assert run(out, max_steps=5, resume_from_checkpoint=True) == 0
    note = "max_steps 5 in place of 3: the learning rate follows the linear schedule of the new length"
    assert note in capsys.readouterr().out.splitlines()
    history = json.loads((out / "checkpoint-5" / "trainer_state.json").read_text())["log_history"]
    rates = [entry["learning_rate"] for entry in history if "loss" in entry]
    assert rates[:3] == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])
    assert rates[3:] == pytest.approx([2 / 5 * 1e-3, 1 / 5 * 1e-3])
    assert run(out, max_steps=5, resume_from_checkpoint=True) == 0
    assert note not in capsys.readouterr().out


def test_a_checkpoint_without_options(whole, tmp_path, capsys):
    out = copied(whole, tmp_path, 1)
    for text, message in (
        (None, f"checkpoint-1 has no {FILE}, so CEPOTrainer did not write it; start a new run from that model"),
        ("{}", f"{FILE} does not hold a run's options"),
    ):
        (out / "checkpoint-1" / FILE).unlink() if text is None else (out / "checkpoint-1" / FILE).write_text(text)
        capsys.readouterr()
        assert run(out, resume_from_checkpoint=True) == 2
        assert message in capsys.readouterr().err


def test_adapters_of_another_rank(tmp_path, capsys):
    out, quick = tmp_path / "out", {"use_peft": True, "lora_r": 4, "max_steps": 2, "output_dir": tmp_path / "out"}
    assert run(out, **quick) == 0
    shutil.rmtree(out / "checkpoint-2")
    capsys.readouterr()
    changes = {"lora_r": 8, "lora_alpha": 16, "use_rslora": True}
    assert run(out, resume_from_checkpoint=True, **quick | changes) == 2
    error = capsys.readouterr().err
    for shown in ("lora_r 4 (now 8)", "lora_alpha 32 (now 16)", "use_rslora false (now true)"):
        assert shown in error
    assert run(out, resume_from_checkpoint=True, **quick) == 0


def test_from_python(tmp_path, text_figures, text_model_path, caplog):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "method": "grpo"}
    train(tmp_path, text_figures, text_model_path, half_right, **options)
    resume = {"resume_from_checkpoint": str(tmp_path / "out" / "checkpoint-1")}
    with pytest.raises(ValueError, match=r'reward_funcs \["half_right"\] \(now \["letters"\]\)'):
        train(tmp_path, text_figures, text_model_path, letters, **options, **resume)
    with pytest.raises(ValueError, match=r'train_dataset "12 rows, digest \w+" \(now "11 rows, digest \w+"\)'):
        train(tmp_path, text_figures.select(range(11)), text_model_path, half_right, **options, **resume)
    with pytest.raises(ValueError, match=r"there is no complete checkpoint in"):
        make(tmp_path / "none", text_figures, text_model_path).train(resume_from_checkpoint=True)
    train(tmp_path, text_figures, text_model_path, half_right, **options | {"max_steps": 3}, **resume)
    (record,) = [record for record in caplog.records if "max_steps 3 in place of 2" in record.getMessage()]
    assert record.levelname == "WARNING"


# Compared options -----------------------------------------------------------------------------------------------------


def options(tmp_path, dataset, model, more=(), **given):
    found = options_of(make(tmp_path, dataset, model, half_right, **given), dict(more))
    found.save(tmp_path)
    read = RunOptions.load(tmp_path)
    assert read == found
    return read


def test_models_are_compared_by_weights(tmp_path, text_figures, text_model_path):
    """A moved folder is the same model; one with other weights is not."""
    moved = shutil.copytree(text_model_path, tmp_path / "moved")
    first = options(tmp_path, text_figures, text_model_path)
    assert changed(first, options(tmp_path, text_figures, str(moved))) == {}
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1e-3
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    other = options(tmp_path, text_figures, str(moved))
    assert changed(first, other) == {"model_name_or_path": (text_model_path, str(moved))}
    assert list(changed(first, replace(other, options=first.options))) == ["weights of model_name_or_path"]


def test_datasets_are_compared_by_rows(tmp_path, text_figures, text_model_path):
    named = {"dataset_name": "data/train.jsonl", "dataset_format": None}
    first = options(tmp_path, text_figures, text_model_path, named)
    moved = options(tmp_path, text_figures.select(range(12)), text_model_path, named | {"dataset_name": "train.jsonl"})
    assert changed(first, moved) == {}
    edited = text_figures.map(lambda row, number: {"solution": "7"} if number == 3 else {}, with_indices=True)
    (name,) = changed(first, options(tmp_path, edited, text_model_path, named))
    assert name == "train_dataset"
    other = options(tmp_path, edited, text_model_path, named | {"dataset_name": "test.jsonl"})
    assert changed(first, other) == {"dataset_name": ("data/train.jsonl", "test.jsonl")}
    other = options(tmp_path, edited, text_model_path, named | {"dataset_format": "gsm8k"})
    assert changed(first, other) == {"dataset_format": (None, "gsm8k")}
    order = options(tmp_path, text_figures.shuffle(seed=1), text_model_path, named)
    assert list(changed(first, order)) == ["train_dataset"]
    stream = options(tmp_path, text_figures.to_iterable_dataset(), text_model_path, named)
    assert stream.contents["train_dataset"] is None
    assert "train_dataset" not in changed(first, stream)


def test_every_option_is_classified():
    """Every option is compared unless `MAY_CHANGE` or the comment below names it."""
    compared = {one.name for one in fields(CEPOConfig) if not MAY_CHANGE.fullmatch(one.name)}
    assert compared >= {"learning_rate", "seed", "method", "beta", "loss_type", "num_generations", "bf16"}
    assert compared >= {"vllm_structured_outputs_regex", "vllm_importance_sampling_mode", "dataloader_drop_last"}
    assert not compared & {"save_steps", "vllm_server_port", "fsdp_config", "hub_token", "max_steps"}
    assert {one.name for one in fields(TrainArguments)} == {
        *DATA_OPTIONS,
        "reward_funcs",
        # Measurement of accuracy, and reports.
        *("dataset_test_split", "eval_problems", "eval_samples", "eval_sampled_problems", "eval_batch_size"),
        *("accuracy_every", "preset", "dry_run", "device_memory", "ignore_bias_buffers"),
    }
    of_model = {one.name for one in fields(ModelConfig)}
    assert {"model_revision", "dtype", "use_peft", "lora_r", "lora_target_modules"} <= of_model


def test_saved_options_are_plain(tmp_path, text_figures, text_model_path):
    """Without addresses of objects, secrets, or sets in random order."""
    lora = LoraConfig(r=4, target_modules={"v_proj", "q_proj"})
    given = {"peft_config": lora, "hub_token": "hf_secretsecret", "optim_args": "a=1", "delta": float("inf")}
    found = options(tmp_path, text_figures, text_model_path, **given)
    assert found.options["lora_target_modules"] == ["q_proj", "v_proj"]
    assert found.options["delta"] == math.inf
    text = (tmp_path / FILE).read_text()
    assert "hf_secret" not in text
    assert not re.search(r"0x[0-9a-f]+", text)
    assert as_json({"f": by_length, "o": object(), "s": {2, 1}}) == {"f": "by_length", "o": "object", "s": [1, 2]}


def test_the_shipped_policy_elsewhere_is_the_same(whole, tmp_path):
    """As in an environment with site-packages in another folder."""
    out, moved = copied(whole, tmp_path, 2), shutil.copytree(policy_path(), tmp_path / "policy")
    assert run(out, resume_from_checkpoint=True, model_name_or_path=moved) == 0
