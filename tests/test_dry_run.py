"""`cepo train --dry_run`: every recipe passes, problems are found, and sizes match real models."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText

from cepo import CEPOConfig, cli, policy_path
from cepo.planning.memory import Layout, Lengths, layer_bytes, memory_of, tower_block_bytes
from cepo.planning.models import KNOWN, Skeleton, find_config

RECIPES = Path(__file__).parent.parent / "recipes"
LINES = [
    (re.findall(r"`([^`]+)`", line), int(re.search(r"(\d+) x", line)[1]), re.search(r"x (\d+) GB", line)[1])
    for line in (RECIPES / "README.md").read_text().splitlines()
    if re.search(r"\| \d+ x \d+ GB \|", line)
]


FEW = ("--figures_problems", 32)


def run(*arguments):
    return cli.main(["train", "--dry_run", *map(str, arguments)])


@pytest.fixture(scope="module", autouse=True)
def _cached_skeletons():
    """Recipes share a few models, and building a skeleton takes seconds."""
    made, plain = {}, Skeleton.of.__func__

    def of(cls, config, dtype, peft_config=None, **options):
        key = (config.to_json_string(), dtype, repr(peft_config), tuple(options.items()))
        if key not in made:
            made[key] = plain(cls, config, dtype, peft_config, **options)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Skeleton, "of", classmethod(of))
        yield


@pytest.mark.parametrize(
    ("files", "processes", "memory"), [pytest.param(*line, id="+".join(line[0])) for line in LINES]
)
def test_every_recipe_passes(files, processes, memory, capsys, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    configs = [part for name in files for part in ("--config", f"recipes/{name}.yaml")]
    status = run(*configs, "--device_memory", memory)
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "no problem found" in printed
    assert re.search(rf"^processes +{processes}\b", printed, re.MULTILINE)
    assert "32 prompts x 8 rollouts = 256" in printed
    assert re.search(r"total( +[\d.]+){4}", printed)


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
    skeleton = Skeleton.of(find_config(name)[0], torch.bfloat16)
    assert skeleton.count() == total
    assert (skeleton.tower is None) == (tower is None)
    if tower:
        assert skeleton.count(module=skeleton.tower) == tower
    if lora:
        adapters = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
        assert Skeleton.of(find_config(name)[0], torch.bfloat16, adapters).count(trained=True) == lora
    assert set(KNOWN) >= {name}


def shipped():
    return Skeleton.of(find_config(policy_path())[0], torch.float32)


def test_a_skeleton_has_the_shapes_of_the_model():
    real = AutoModelForImageTextToText.from_pretrained(policy_path(), dtype=torch.float32)
    skeleton = shipped()
    sizes = {name: (p.shape, p.dtype) for name, p in real.named_parameters()}
    assert {name: (p.shape, p.dtype) for name, p in skeleton.model.named_parameters()} == sizes
    assert skeleton.bytes_of(trained=True) == sum(p.nbytes for p in real.parameters())
    tokens = torch.ones(1, 10, dtype=torch.long)
    cache = real(input_ids=tokens, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert skeleton.cache_elements * 4 * 10 == held


def kept_bytes(run, parameters):
    """Bytes that a forward pass keeps for its backward pass, without the parameters."""
    own, kept = {p.untyped_storage().data_ptr() for p in parameters}, {}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # no address is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("dtype", "mixed"), [("float32", False), ("float32", True), ("bfloat16", False)])
def test_estimated_activations_match_a_real_pass(dtype, mixed, lora):
    dtype = getattr(torch, dtype)
    real = AutoModelForImageTextToText.from_pretrained(policy_path(), dtype=dtype).train()
    adapters = LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    if lora:
        get_peft_model(real, adapters)
    decoder, kept = real.get_decoder(), {}
    for tokens in (32, 96):
        hidden = torch.randn(1, tokens, decoder.config.hidden_size, requires_grad=True, dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            run = lambda hidden=hidden: decoder(inputs_embeds=hidden, use_cache=False)  # noqa: E731
            kept[tokens] = kept_bytes(run, real.parameters())
    each = layer_bytes(Skeleton.of(find_config(policy_path())[0], dtype, adapters), mixed)
    layers = decoder.config.num_hidden_layers
    assert layers * each == pytest.approx((kept[96] - kept[32]) / 64, rel=0.06)


def test_estimated_activations_of_the_tower_match_a_real_pass():
    real = AutoModelForImageTextToText.from_pretrained(policy_path(), dtype=torch.float32).train()
    tower, kept = real.model.visual, {}
    for side in (4, 8):
        patches = torch.randn(side**2, 3 * tower.config.temporal_patch_size * tower.config.patch_size**2)
        grid = torch.tensor([[1, side, side]])
        kept[side] = kept_bytes(lambda grid=grid, patches=patches: tower(patches, grid_thw=grid), tower.parameters())
    each = (kept[8] - kept[4]) / 48
    blocks = tower_block_bytes(shipped(), False) * tower.config.depth
    assert blocks == pytest.approx(each, rel=0.25)  # without patch embedding and merger


def plan(layout=None, lengths=None, **options):
    """The estimate for the shipped policy."""
    args = CEPOConfig(
        output_dir="unused",
        per_device_train_batch_size=8,
        num_generations=4,
        bf16=False,
        **{"gradient_checkpointing": False, **options},
    )
    return memory_of(shipped(), args, layout or Layout(), lengths or Lengths(64, 0, 64))


def part(memory, beginning):
    (found,) = [one for one in memory.parts if one.name.startswith(beginning)]
    return found.bytes


def test_sharded_parts_are_divided_by_the_number_of_processes():
    whole = plan()
    for shards, divided in {
        "optimizer": {"optimizer"},
        "gradients": {"optimizer", "gradients"},
        "weights": {"optimizer", "gradients", "weights"},
    }.items():
        sharded = plan(Layout(4, shards, "fsdp2"))
        for name in ("optimizer", "gradients", "activations"):
            assert part(sharded, name) == part(whole, name) / (4 if name in divided else 1)
        weights = next(one.bytes for one in sharded.parts if one.name == "weights")
        assert weights == part(whole, "weights") / (4 if "weights" in divided else 1)


def test_options_change_the_estimate():
    plain, grpo = plan(), plan(method="grpo")
    assert plain.at("teachers") > grpo.at("teachers")
    assert plain.at("update") == grpo.at("update")
    assert plan(gradient_checkpointing=True).at("update") < plain.at("update")
    assert plan(optim="sgd").peak < plain.peak
    lagging = plan(teacher="initial")
    assert part(lagging, "teacher weights") == shipped().bytes_of(trained=True)
    twice = plan(lengths=Lengths(64, 0, 192))
    assert part(twice, "activations") == 2 * part(plain, "activations")
    full = plan(method="opsd")
    assert part(full, "logits") == 6 * 512 * shipped().text.vocab_size * 4


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
