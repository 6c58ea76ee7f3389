"""`cepo merge`: the folder loads without PEFT and says what model and adapters said."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from cepo import cli, policy_path
from cepo.data.loading import load_policy
from cepo.data.sampling import conversation_of
from cepo.scoring.prompts import PromptEncoder

KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "head": {"modules_to_save": ["lm_head"]},
}


def adapters(folder, base, auto, **settings):
    """Adapters that say something: their second factor is not zero, as it is at the start."""
    torch.manual_seed(3)
    model = get_peft_model(
        auto.from_pretrained(base), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **settings)
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                weight.add_(torch.randn_like(weight) * 0.05)
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(base).save_pretrained(folder)
    return str(folder)


def log_probs(model, ids, **images):
    with torch.no_grad():
        return model.eval()(input_ids=ids, **images).logits.log_softmax(-1)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_of_a_policy_that_reads_images(kind, tmp_path, figures, capsys):
    base = policy_path()
    path = adapters(tmp_path / "adapters", base, AutoModelForImageTextToText, **KINDS[kind])
    output = tmp_path / "merged"
    assert cli.main(["merge", "--model_name_or_path", path, "--output_dir", str(output)]) == 0
    assert f"parameters in float32, in {output}" in capsys.readouterr().out.replace("\n", "")
    assert not (output / "adapter_config.json").exists()

    merged = AutoModelForImageTextToText.from_pretrained(output)
    plain = AutoModelForImageTextToText.from_pretrained(base)
    both = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), path)
    processor = AutoProcessor.from_pretrained(output)
    prompt = PromptEncoder(processor, True).prompt(conversation_of(figures[0], processor))
    ids = torch.tensor([prompt.ids])
    types = prompt.token_types["mm_token_type_ids"][None]
    found, expected, unlike = (
        log_probs(model, ids, mm_token_type_ids=types, **prompt.images) for model in (merged, both, plain)
    )
    assert (found - expected).abs().max() < 1e-4
    assert (found - unlike).abs().max() > 0.1
    # What stands beside the weights: the chat template, and the vision tokens that are never sampled.
    assert processor.chat_template == AutoProcessor.from_pretrained(base).chat_template
    assert GenerationConfig.from_pretrained(output).suppress_tokens == [3, 4, 5, 6]
    # And `cepo` reads it as it reads the adapters themselves.
    ours, theirs = (
        log_probs(load_policy(name)[0], ids, mm_token_type_ids=types, **prompt.images)
        for name in (output.as_posix(), path)
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["lora", "head"])
def test_of_a_text_model_in_another_type_and_in_parts(kind, tmp_path, text_model_path):
    path = adapters(tmp_path / "adapters", text_model_path, AutoModelForCausalLM, **KINDS[kind])
    both = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(text_model_path), path)
    ids = torch.arange(8, 40)[None]
    for dtype, most in (("float32", 1e-4), ("bfloat16", 0.05)):
        output = tmp_path / dtype
        arguments = ["--output_dir", str(output), "--dtype", dtype, "--max_shard_size", "40KB"]
        assert cli.main(["merge", "--model_name_or_path", path, *arguments]) == 0
        assert len(list(output.glob("model-*.safetensors"))) > 1
        assert json.loads((output / "config.json").read_text())["dtype"] == dtype
        merged = AutoModelForCausalLM.from_pretrained(output, dtype="float32")
        assert (log_probs(merged, ids) - log_probs(both, ids)).abs().max() < most


def test_a_base_that_has_moved_is_named(tmp_path, text_model_path, capsys):
    path = adapters(tmp_path / "adapters", text_model_path, AutoModelForCausalLM)
    config = tmp_path / "adapters" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(tmp_path / "gone")}))
    arguments = ["merge", "--model_name_or_path", path, "--output_dir", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert f"cannot load {tmp_path / 'gone'}, the model of these adapters" in error
    assert "it is neither a folder here nor" in error
    assert not (tmp_path / "out").exists()
    assert cli.main([*arguments, "--base_model", text_model_path]) == 0


def test_upload(tmp_path, text_model_path, monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def create_repo(self, name, **kwargs):
            calls.append((name, kwargs))
            return f"https://hub/{name}"

        def upload_folder(self, **kwargs):
            calls.append(kwargs)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    path = adapters(tmp_path / "adapters", text_model_path, AutoModelForCausalLM)
    arguments = ["--output_dir", str(tmp_path / "out"), "--push_to_hub", "me/model", "--private"]
    assert cli.main(["merge", "--model_name_or_path", path, *arguments]) == 0
    assert calls == [
        ("me/model", {"private": True, "exist_ok": True}),
        {"repo_id": "me/model", "folder_path": tmp_path / "out"},
    ]


def test_mistakes(tmp_path, text_model_path, capsys):
    path = adapters(tmp_path / "adapters", text_model_path, AutoModelForCausalLM)
    prompt = tmp_path / "prompt"
    tuned = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(AutoModelForCausalLM.from_pretrained(text_model_path), tuned).save_pretrained(prompt)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    free, full = str(tmp_path / "free"), str(tmp_path / "full")
    for model, output, more, named in (
        (text_model_path, free, [], "holds a whole model, no adapters (adapter_config.json)"),
        (str(tmp_path / "empty"), free, [], "holds nothing of PEFT, no adapters (adapter_config.json)"),
        (str(tmp_path / "nowhere"), free, [], "there is no such folder"),
        (str(prompt), free, [], "PROMPT_TUNING, which is read beside a model and cannot be merged"),
        (path, full, [], f"{full} is not an empty folder; name another, or remove it"),
        (path, free, ["--private"], "--private is about the repository of --push_to_hub"),
    ):
        assert cli.main(["merge", "--model_name_or_path", model, "--output_dir", output, *more]) == 2
        error = capsys.readouterr().err
        assert named in error
        assert error.count("\n") == 1
        assert not (tmp_path / "free").exists()
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
