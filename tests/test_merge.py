"""`cepo merge`: the saved model loads without PEFT and has the log-probs of model and adapters."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from cepo import cli, policy_path
from cepo.data.adapters import load_merged
from cepo.data.models import load_policy
from cepo.data.sampling import conversation_of
from cepo.scoring.prompts import PromptEncoder
from tests.support.tiny_models import IMAGE_MODELS, TEXT_MODELS

KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "head": {"modules_to_save": ["lm_head"]},
}


def adapters(folder, base, auto, processor_of=None, **settings):
    """Adapters with a nonzero second factor, which is zero at initialization."""
    torch.manual_seed(3)
    settings = {"target_modules": "all-linear", **settings}
    model = get_peft_model(auto.from_pretrained(base), LoraConfig(r=4, lora_alpha=8, **settings))
    names = ("lora_B", "lora_embedding_A", "modules_to_save", "trainable_tokens_delta")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in names):
                weight.add_(torch.randn_like(weight) * 0.05)
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(processor_of or base).save_pretrained(folder)
    return str(folder)


def log_probs(model, ids, **images):
    with torch.no_grad():
        return model.eval()(input_ids=ids, **images).logits.log_softmax(-1)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_merge_a_vision_language_model(kind, tmp_path, figures, capsys):
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
    prompt = PromptEncoder(processor).prompt(conversation_of(figures[0], processor))
    ids = torch.tensor([prompt.ids])
    types = prompt.token_types["mm_token_type_ids"][None]
    found, expected, unlike = (
        log_probs(model, ids, mm_token_type_ids=types, **prompt.images) for model in (merged, both, plain)
    )
    assert (found - expected).abs().max() < 1e-4
    assert (found - unlike).abs().max() > 0.1
    # Files beside the weights: the chat template, and the vision tokens that are not sampled.
    assert processor.chat_template == AutoProcessor.from_pretrained(base).chat_template
    assert GenerationConfig.from_pretrained(output).suppress_tokens == [3, 4, 5, 6]
    found, expected = (
        log_probs(load_policy(name)[0], ids, mm_token_type_ids=types, **prompt.images)
        for name in (output.as_posix(), path)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["lora", "head"])
def test_merge_a_text_model_with_dtype(kind, tmp_path, text_model_path):
    path = adapters(tmp_path / "adapters", text_model_path, AutoModelForCausalLM, **KINDS[kind])
    both = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(text_model_path), path)
    ids = torch.arange(8, 40)[None]
    for dtype, most in (("float32", 1e-4), ("bfloat16", 0.05)):
        output = tmp_path / dtype
        arguments = ["--output_dir", str(output), "--dtype", dtype]
        assert cli.main(["merge", "--model_name_or_path", path, *arguments]) == 0
        assert json.loads((output / "config.json").read_text())["dtype"] == dtype
        merged = AutoModelForCausalLM.from_pretrained(output, dtype="float32")
        assert (log_probs(merged, ids) - log_probs(both, ids)).abs().max() < most


TIED = {
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "both": {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    "dora of the embedding": {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    "a head of its own": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "an embedding of its own": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "tied adapters": {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True},
    "tied copies": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    "some tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [7, 8]},
}
STAY_TIED = ("tied adapters", "tied copies", "some tokens")


@pytest.fixture(scope="module", params=["qwen3", "gemma3", "qwen3_vl"])
def tied_base(request, tmp_path_factory):
    """A model with tied embeddings."""
    torch.manual_seed(0)
    model = (TEXT_MODELS | IMAGE_MODELS)[request.param]()
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = True
    config = model.config
    # For the prompt's tokens of the shipped tokenizer.
    config.get_text_config().vocab_size = len(AutoProcessor.from_pretrained(policy_path()).tokenizer)
    model = type(model)(config)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return str(folder), AutoModelForImageTextToText if request.param in IMAGE_MODELS else AutoModelForCausalLM


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("kind", TIED)
def test_merge_tied_embeddings(kind, tied_base, tmp_path, text_model_path, recwarn):
    """Adapters of the embedding do not change the head, nor the reverse, also in `load_merged`."""
    base, auto = tied_base
    path = adapters(tmp_path / "adapters", base, auto, text_model_path, **TIED[kind])
    both = PeftModel.from_pretrained(auto.from_pretrained(base), path)
    output, ids = tmp_path / "merged", torch.arange(8, 40)[None]
    recwarn.clear()
    assert cli.main(["merge", "--model_name_or_path", path, "--output_dir", str(output)]) == 0
    assert not [str(one.message) for one in recwarn if "tie" in str(one.message)]
    expected = log_probs(both, ids)
    assert (log_probs(auto.from_pretrained(base), ids) - expected).abs().max() > 0.05
    for model in (auto.from_pretrained(output), load_merged(path)):
        assert (log_probs(model, ids) - expected).abs().max() < 1e-4
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert tied == model.config.tie_word_embeddings == (kind in STAY_TIED)


def test_missing_base_model(tmp_path, text_model_path, capsys):
    path = adapters(tmp_path / "adapters", text_model_path, AutoModelForCausalLM)
    config = tmp_path / "adapters" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(tmp_path / "gone")}))
    arguments = ["merge", "--model_name_or_path", path, "--output_dir", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert f"the base model of the adapters in {path}: cannot load {tmp_path / 'gone'}" in error
    assert not (tmp_path / "out").exists()
    assert cli.main([*arguments, "--base_model", text_model_path]) == 0


def test_errors(tmp_path, text_model_path, capsys):
    path = adapters(tmp_path / "adapters", text_model_path, AutoModelForCausalLM)
    prompt = tmp_path / "prompt"
    tuned = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(AutoModelForCausalLM.from_pretrained(text_model_path), tuned).save_pretrained(prompt)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    free, full = str(tmp_path / "free"), str(tmp_path / "full")
    for model, output, named in (
        (text_model_path, free, "is not a folder with adapters (adapter_config.json)"),
        (str(tmp_path / "nowhere"), free, "is not a folder with adapters (adapter_config.json)"),
        (str(prompt), free, "adapters of type PROMPT_TUNING cannot be merged into weights"),
        (path, full, f"{full} is not an empty folder; choose another, or remove it"),
    ):
        assert cli.main(["merge", "--model_name_or_path", model, "--output_dir", output]) == 2
        error = capsys.readouterr().err
        assert named in error
        assert error.count("\n") == 1
        assert not (tmp_path / "free").exists()
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
