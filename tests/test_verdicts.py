"""Verdicts outside of the trainer: reward functions are called as in training, and missing verdicts are counted."""

import asyncio
import json

import pytest
from datasets import Dataset
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from transformers import AutoTokenizer, TrainerState

from cepo import CEPOConfig, CEPOTrainer, cli, load_figures, policy_path
from cepo.data.checks import DatasetError, check_dataset
from cepo.data.evaluation import evaluate
from cepo.data.models import load_policy
from cepo.data.sampling import Sampling, verdicts
from cepo.references.hints import add_hint
from tests.support.training import QUICK, half_right, logged, train

ROWS = [{"prompt": [{"role": "user", "content": "?"}], "solution": str(n), "unit": "cm"} for n in range(4)]
TEXTS, IDS = ["0", "5", "2", ""], [(1,), (2, 3), (4,), ()]


def as_in_training(prompts, completions, completion_ids, solution, unit, trainer_state, log_extra, log_metric):
    """Takes exactly the arguments that TRL passes."""
    assert [prompt[0]["content"] for prompt in prompts] == ["?"] * len(prompts)
    assert completion_ids == [list(ids) for ids in IDS]
    assert unit == ["cm"] * len(prompts)
    assert isinstance(trainer_state, TrainerState)
    log_extra("note", ["x"] * len(prompts))
    log_metric("share", 0.5)
    texts = [completion[0]["content"] for completion in completions]
    return [None if not text else float(text == correct) for text, correct in zip(texts, solution, strict=True)]


async def in_its_own_time(**kwargs):
    await asyncio.sleep(0)
    return as_in_training(**kwargs)


@pytest.mark.parametrize("reward_func", [as_in_training, in_its_own_time])
def test_reward_functions_are_called_as_in_training(reward_func):
    assert verdicts(reward_func, ROWS, TEXTS, IDS) == [1.0, 0.0, 1.0, None]


def test_nan_is_no_verdict_and_every_completion_needs_a_reward():
    assert verdicts(lambda prompts, **_: [float("nan"), 1, 0, None], ROWS, TEXTS, IDS) == [None, 1.0, 0.0, None]
    with pytest.raises(ValueError, match="'short' returned 1 rewards for 4 completions"):
        verdicts(short, ROWS, TEXTS, IDS)


def short(**kwargs):
    return [1.0]


@pytest.fixture(scope="module")
def policy():
    return load_policy(policy_path())


def every_other(prompts, **kwargs):
    return [None if place % 2 else 0.6 for place in range(len(prompts))]


def no_verdict(prompts, **kwargs):
    return [None] * len(prompts)


def test_missing_verdicts_are_counted(policy):
    problems, sampling = load_figures("test", 4), Sampling(8, 0.0)
    found = evaluate(*policy, problems, sampling, reward_func=every_other)
    assert (found.accuracy.value, found.missing) == (0.5, 2)
    assert found.without_verdict == "2 of 4 without a verdict"
    assert found.as_dict()["missing_verdicts"] == 2
    assert evaluate(*policy, problems, sampling, reward_func=every_other, threshold=0.7).accuracy.value == 0
    with pytest.raises(DatasetError, match="no_verdict gave no verdict on any of 4 completions"):
        evaluate(*policy, problems, sampling, reward_func=no_verdict)


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_no_verdict_at_all_is_an_error(command, tmp_path, capsys):
    options = {
        "evaluate": ["--num_problems", "4", "--temperatures", "0"],
        "train": ["--eval_problems", "4", "--max_steps", "1", "--figures_problems", "16"],
    }[command]
    options += [
        "--reward_funcs",
        f"{__name__}.no_verdict",
        "--max_completion_length",
        "8",
        "--output_dir",
        str(tmp_path),
    ]
    assert cli.main([command, *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("cepo: error: no_verdict gave no verdict on any of 4 completions")


@pytest.mark.parametrize("adapters", [PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig])
def test_prompt_learning_adapters_are_refused(tmp_path, text_figures, text_model_path, adapters):
    """Their virtual tokens would precede the prompts of teachers as well."""
    config = adapters(task_type="CAUSAL_LM", num_virtual_tokens=4)

    def make(method):
        args = CEPOConfig(output_dir=str(tmp_path), method=method, **QUICK)
        return CEPOTrainer(text_model_path, half_right, args, text_figures, peft_config=config)

    for method in ("cepo", "opsd"):
        with pytest.raises(ValueError, match=r"adds virtual tokens before each prompt.*Use LoRA"):
            make(method)
    make("grpo")


TRIMS = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("parts", [True, False])
def test_hint_with_a_template_that_trims_parts(text_model_path, parts):
    """As that of Gemma 3."""
    tokenizer = AutoTokenizer.from_pretrained(text_model_path)
    text = "Find the angle."
    content = [{"type": "image"}, {"type": "text", "text": text}] if parts else text
    messages = add_hint([{"role": "user", "content": content}], "\n\nThe correct answer is 9.")
    text_with_hint = tokenizer.apply_chat_template(messages, chat_template=TRIMS, tokenize=False)
    assert text_with_hint == f"<user>{text}\n\nThe correct answer is 9."


def test_hint_after_an_image_only():
    parts = [{"type": "image"}]
    hinted = add_hint([{"role": "user", "content": parts}], "a hint")
    assert hinted[0]["content"] == [{"type": "image"}, {"type": "text", "text": "a hint"}]
    assert parts == [{"type": "image"}]


def test_rows_with_and_without_images_are_refused_before_training(tmp_path, figures):
    rows = [{name: row[name] for name in ("prompt", "image", "solution")} for row in figures.select(range(4))]
    rows[2]["image"] = None
    mixed = Dataset.from_list(rows, features=figures.select_columns(["prompt", "image", "solution"]).features)
    with pytest.raises(DatasetError, match=r"row 2 of the training set has no image in 'image', and row 0 has one"):
        check_dataset(mixed, needs_solution=True)
    args = CEPOConfig(output_dir=str(tmp_path), **QUICK)
    trainer = CEPOTrainer(policy_path(), half_right, args, mixed.to_iterable_dataset())
    with pytest.raises(DatasetError, match=r"rows with and without images"):
        trainer.train()


def test_warning_if_all_completions_are_clipped(tmp_path, text_figures, text_model_path, caplog):
    """No completion ends within four tokens, so no rollout has a reward."""
    trainer = train(tmp_path, text_figures, model=text_model_path, max_steps=4, max_completion_length=4)
    assert min(logged(trainer, "completions/clipped_ratio")) > 0.5
    (warning,) = [text for record in caplog.records if "clipped_ratio" in (text := record.getMessage())]
    assert warning.startswith("completions/clipped_ratio: 3 times in a row, now 100 % of completions are cut off by ")


def test_clipped_completions_are_counted(policy, tmp_path, capsys):
    problems = load_figures("test", 4)
    cut = evaluate(*policy, problems, Sampling(8, 0.0))
    assert (cut.clipped, cut.cut_off) == (4, "4 of 4 cut off by the length limit")
    whole = evaluate(*policy, problems, Sampling(200, 0.0))
    assert (whole.clipped, whole.cut_off, whole.as_dict()["clipped"]) == (0, "", 0)
    options = ["--num_problems", "4", "--temperatures", "0", "--output_dir", str(tmp_path)]
    assert cli.main(["evaluate", *options, "--max_completion_length", "8"]) == 0
    assert "truncated" in capsys.readouterr().out
    assert json.loads((tmp_path / "evaluation.json").read_text())["temperatures"][0]["clipped"] == 4
