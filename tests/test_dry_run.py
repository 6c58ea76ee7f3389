"""`cepo train --dry_run`: recipes pass, problems are found, and estimates are near what rehearsed steps counted."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from peft import LoraConfig
from transformers import AutoModelForImageTextToText

from cepo import CEPOConfig, cli, policy_path
from cepo.planning.estimate import Plan, at, peak
from cepo.planning.models import KNOWN, Sizes, find_config

RECIPES = Path(__file__).parent.parent / "recipes"
LINES = [
    (
        re.findall(r"`([^`]+)`", line),
        *re.search(r"\| (\d+) x (\d+) GB \| (.*?) \| (.*?) \|", line).groups(),
    )
    for line in (RECIPES / "README.md").read_text().splitlines()
    if re.search(r"\| \d+ x \d+ GB \|", line)
]
FEW = ("--figures_problems", 32)
GIB = 2**30


def run(*arguments):
    return cli.main(["train", "--dry_run", *map(str, arguments)])


@pytest.fixture(scope="module", autouse=True)
def _cached_sizes():
    """Recipes share a few models, and building one on the meta device takes seconds."""
    made, plain = {}, Sizes.of.__func__

    def of(cls, config, dtype, peft_config=None, **options):
        key = (config.to_json_string(), dtype, repr(peft_config), tuple(options.items()))
        if key not in made:
            made[key] = plain(cls, config, dtype, peft_config, **options)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sizes, "of", classmethod(of))
        yield


@pytest.mark.parametrize(
    ("files", "processes", "memory", "phases", "batches"), [pytest.param(*line, id="+".join(line[0])) for line in LINES]
)
def test_every_recipe_passes(files, processes, memory, phases, batches, capsys, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    configs = [part for name in files for part in ("--config", f"recipes/{name}.yaml")]
    status = run(*configs, "--device_memory", memory)
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "no problem found" in printed
    assert re.search(rf"^processes +{processes}\b", printed, re.MULTILINE)
    assert "32 prompts x 8 rollouts = 256" in printed
    totals = [float(one) for one in re.search(r"total((?: +[\d.]+){4})", printed)[1].split()]
    listed = [float(one) for one in phases.split(" / ")]
    assert totals == pytest.approx(listed, abs=0.06), "run scripts/recipe_memory.py"
    assert f"per_device_train_batch_size {batches} on" in printed, "run scripts/recipe_memory.py"


def test_every_recipe_file_is_in_the_list():
    listed = {name for files, *_ in LINES for name in files}
    folders = ("models", "methods", "ablations", "hardware")
    assert {f"{folder}/{path.stem}" for folder in folders for path in (RECIPES / folder).glob("*")} == listed


def test_recipes_of_methods_repeat_no_option_of_the_models():
    base = set().union(*(yaml.safe_load(path.read_text()) for path in (RECIPES / "models").glob("*.yaml")))
    for path in (RECIPES / "methods").glob("*.yaml"):
        assert not base & set(yaml.safe_load(path.read_text())), path


@pytest.mark.parametrize(
    ("name", "total", "tower", "lora"),
    [
        ("Qwen/Qwen3-VL-2B-Instruct", 2_127_532_032, 406_957_056, 24_641_536),
        ("Qwen/Qwen3-VL-4B-Instruct", 4_437_815_808, 415_347_712, None),
        ("Qwen/Qwen3-1.7B", 1_720_574_976, None, None),
    ],
)
def test_sizes_of_known_models(name, total, tower, lora):
    """As on their model cards."""
    sizes = Sizes.of(find_config(name)[0], torch.bfloat16)
    assert (sizes.parameters, sizes.tower and sizes.tower.parameters) == (total, tower)
    if lora:
        adapters = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
        assert Sizes.of(find_config(name)[0], torch.bfloat16, adapters).trained == lora
    assert set(KNOWN) >= {name}


# Steps of Qwen3-VL with a prompt of 513 tokens, 380 of them of an image, and 8 rollouts of 2,048: options; PFLOP of the
# update and of teachers; GiB in the update and in scoring. Counted with torch's CUDA allocator and kernels' shapes, as
# `python -m scripts.rehearse RECIPE --lengths 2048 0` does.
CHECKPOINTING, WHOLE, FOUR = {"gradient_checkpointing": True}, {"shared_prompt_update": "never"}, {"max_negatives": 4}
LORA, FULL = CHECKPOINTING | WHOLE, CHECKPOINTING | WHOLE | {"full": True}
PAPER = {"negative_reference": "lowest_reward"}
SHARDED = {**FULL, **PAPER, "per_device_train_batch_size": 4, "processes": 8}
MICRO = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
COUNTED = {
    "grpo, tree": ("2B", CHECKPOINTING | {"method": "grpo"}, 0.2233, 0, 9.21, 4.47),
    "cepo, tree": ("2B", CHECKPOINTING, 0.2233, 0.1749, 9.21, 5.9),
    "4B, tree": ("4B", CHECKPOINTING | MICRO, 0.5429, 0.4204, 12.96, 10.03),
    "grpo": ("2B", LORA | {"method": "grpo"}, 0.2927, 0, 10.97, 4.47),
    "cepo": ("2B", LORA | FOUR, 0.2927, 0.2364, 10.97, 5.79),
    "cepo, paper": ("2B", LORA | PAPER, 0.2927, 0.1362, 10.97, 5.63),
    "rlsd": ("2B", LORA | {"method": "rlsd", "teacher": "synced"}, 0.2927, 0.1388, 11.06, 5.81),
    "float32 weights": ("2B", LORA | FOUR | {"dtype": torch.float32}, 0.2927, 0.2364, 17.49, 10.24),
    "no checkpointing, shared": ("2B", FOUR, 0.1641, 0.2364, 62.5, 5.79),
    "no checkpointing": ("2B", WHOLE | FOUR, 0.2129, 0.2364, 79.54, 5.8),
    "4B": ("4B", LORA | FOUR, 0.6614, 0.5584, 18.48, 10.9),
    "all weights": ("2B", FULL | FOUR | {"gradient_accumulation_steps": 2}, 0.6968, None, 22.62, 13.46),
    "FSDP2 of 8": ("2B", SHARDED, 0.1742, 0.0689, 7.84, 4.71),
    "FSDP2 of 8, accumulated": ("2B", SHARDED | {"gradient_accumulation_steps": 2}, 0.3485, 0.135, 11.84, 4.78),
}


def plan(name=None, *, full=False, dtype=torch.bfloat16, processes=1, **options):
    """The estimate for a Qwen3-VL with its recipe's adapters, or for the shipped policy."""
    adapters = LoraConfig(r=16, target_modules="all-linear") if name and not full else None
    config = find_config(f"Qwen/Qwen3-VL-{name}-Instruct" if name else policy_path())[0]
    many = type("CEPOConfig", (CEPOConfig,), {"world_size": property(lambda _: processes)})
    one_group = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_generations": 8}
    options = {**one_group, "gradient_checkpointing": False, **options}
    args = many("unused", use_cpu=True, bf16=name is not None, **options)
    layout = {"processes": processes, "shards": "weights", "engine": "fsdp2"} if processes > 1 else {}
    lengths = (513, 380, 2048) if name else (64, 0, 64)
    return Plan(Sizes.of(config, dtype if name else torch.float32, adapters), args, *lengths, **layout)


@pytest.mark.parametrize(
    ("name", "options", "update", "teachers", "peak_update", "peak_teachers"), COUNTED.values(), ids=COUNTED
)
def test_estimates_are_within_a_tenth_of_counted_steps(name, options, update, teachers, peak_update, peak_teachers):
    estimate = plan(name, **options)
    flops, parts = estimate.flops(), estimate.memory()
    assert flops["update"] / 1e15 == pytest.approx(update, rel=0.1)
    if teachers is not None:
        assert flops["teachers"] / 1e15 == pytest.approx(teachers, rel=0.1)
    assert at(parts, "update") / GIB == pytest.approx(peak_update, rel=0.1)
    assert at(parts, "teachers") / GIB == pytest.approx(peak_teachers, rel=0.1)


def test_a_divergence_scores_whole_contexts():
    """OPSD, whose teachers run in the update: 0.395 PFLOP and 11.07 GiB counted."""
    estimate = plan("2B", **LORA, method="opsd")
    flops = estimate.flops()
    assert (flops["update"] + flops["teachers"]) / 1e15 == pytest.approx(0.395, rel=0.1)
    assert at(estimate.memory(), "update") / GIB == pytest.approx(11.07, rel=0.1)


def test_keys_and_values_of_the_cache_are_those_of_the_model():
    model = AutoModelForImageTextToText.from_pretrained(policy_path(), dtype=torch.float32)
    cache = model(input_ids=torch.ones(1, 10, dtype=torch.long), use_cache=True).past_key_values
    assert plan()._cache_bytes * 10 == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert plan().model.parameters == sum(p.numel() for p in model.parameters())


def part(of, beginning):
    (found,) = [size for name, size, _ in of.memory() if name == beginning or name.startswith(f"{beginning} (")]
    return found


def test_sharded_parts_are_divided_by_the_number_of_processes():
    whole = plan()
    for count, shards in enumerate(("none", "optimizer", "gradients", "weights")):
        sharded = replace(whole, processes=4, shards=shards)
        for index, name in enumerate(("optimizer", "gradients", "weights")):
            assert part(sharded, name) == part(whole, name) / (4 if index < count else 1), (shards, name)


def test_options_change_the_estimate():
    plain, grpo = plan(), plan(method="grpo")
    assert at(plain.memory(), "teachers") > at(grpo.memory(), "teachers")
    assert at(plain.memory(), "update") == at(grpo.memory(), "update")
    assert grpo.flops()["teachers"] == 0 < plain.flops()["teachers"]
    assert part(plan(gradient_checkpointing=True), "activations") < part(plain, "activations") / 4
    assert peak(plan(optim="sgd").memory()) < peak(plain.memory())
    assert part(plan(teacher="initial"), "teacher weights") == 4 * plain.model.parameters


def test_a_shared_prompt_runs_once_per_group():
    shared, whole = plan(), plan(shared_prompt_update="never")
    assert shared.flops()["TRL"] == whole.flops()["TRL"] == whole.flops()["update"]
    tokens = {True: 64 + 8 * 64, False: 8 * (64 + 64)}
    assert part(shared, "activations") / tokens[True] == part(whole, "activations") / tokens[False]


def test_the_largest_batch_is_the_last_that_fits():
    estimate = plan("2B", **LORA, gradient_accumulation_steps=32, use_vllm=True, vllm_mode="server")
    for size in (24, 48, 80):
        largest = estimate.largest_batch(size * GIB)
        assert peak(estimate.memory(largest)) <= 0.9 * size * GIB < peak(estimate.memory(2 * largest))
    assert estimate.largest_batch(GIB) == 0


def test_a_valid_run(tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--output_dir", out, "--figures_problems", 200) == 0
    printed = capsys.readouterr().out
    for text in ("1.6 M parameters", "8 prompts x 8 rollouts = 64", "28 optimizer steps", "200 rows", "no problem"):
        assert text in printed
    assert not out.exists()


def test_epochs_are_converted_to_steps(capsys):
    assert run("--max_steps", -1, "--num_train_epochs", 2, "--figures_problems", 100) == 0
    assert "24 optimizer steps, 2 epochs" in capsys.readouterr().out  # 12 whole batches of 8 prompts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--per_device_train_batch_size", 12], "must be divisible by num_generations"),
        (["--figures_problems", 4], "the training set has 4 rows"),
        (["--device_memory", 0.1], "do not fit a device of 0.1 GiB"),
        (["--model_name_or_path", "nobody/nothing"], "fetch its config.json"),
        (["--dataset_name", "no.jsonl", "--model_name_or_path", policy_path()], "there is no such file"),
        (["--reward_funcs", "no.such"], "cannot import"),
        (["--num_processes", 4], "options of accelerate need --accelerate_config"),
        (["--max_step", 4], "unknown option --max_step; did you mean --max_steps?"),
        (["--accelerate_config", "fsdp1", "--per_device_train_batch_size", 8], "set fsdp_version to 2"),
        (["--method", "oracle", "--accelerate_config", "zero2", "--num_processes", 16], "whole groups on each process"),
        (["--max_prompt_length", 5], "prompts are longer"),
    ],
)
def test_problems_are_reported(options, message, capsys):
    if "oracle" in options:
        options += ["--per_device_train_batch_size", 4]
    assert run(*FEW, *options) == 2
    captured = capsys.readouterr()
    assert message in captured.out + captured.err
    assert "Traceback" not in captured.err


def test_several_problems_are_reported_at_once(capsys):
    assert run("--figures_problems", 4, "--reward_funcs", "no.such", "--device_memory", 0.1) == 2
    assert capsys.readouterr().out.count("problem: ") == 3


def test_processes_of_an_accelerate_configuration(capsys):
    assert run(*FEW, "--accelerate_config", "zero3", "--num_processes", 4, "--per_device_train_batch_size", 16) == 0
    printed = capsys.readouterr().out
    assert "processes    4 (deepspeed), sharded: weights" in printed
    assert "8 prompts x 8 rollouts = 64; micro-batches of 16 per process" in printed
    assert CEPOConfig(output_dir="unused", bf16=False).world_size == 1


def test_a_dry_run_is_offline_and_flags_override_yaml(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    config = tmp_path / "run.yaml"
    config.write_text("dry_run: true\nfigures_problems: 32\n")
    assert cli.main(["train", "--config", str(config), "--dry_run", "false", "--reward_funcs", "no.such"]) == 2
    assert not constants.HF_HUB_OFFLINE
    assert "cannot import" in capsys.readouterr().err  # raised by training
    assert cli.main(["train", "--config", str(config)]) == 0
    assert constants.HF_HUB_OFFLINE
    assert "no problem found" in capsys.readouterr().out
