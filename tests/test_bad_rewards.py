"""Validate rewards; exceptions of reward functions pass unchanged."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoTokenizer

from cepo import CEPOConfig, CEPOTrainer, cli
from cepo.data.reward_validation import RewardError, validate_rewards
from cepo.data.sampling import group_advantages
from cepo.trainer.advantages import mask_unscored_rollouts
from cepo.trainer.checkpoints import last_whole_checkpoint
from tests.support.training import QUICK, half_right, logged, make, train, weights_of

PROMPTS = ["one", "two", "three"]


@pytest.mark.parametrize(
    "found",
    [
        [1, 0.5, None],
        (True, 0.5, float("nan")),
        np.array([1.0, 0.5, np.nan]),
        torch.tensor([1.0, 0.5, math.nan], dtype=torch.bfloat16),
        [torch.tensor(1.0), np.float32(0.5), None],
        (value for value in (1, 0.5, None)),
    ],
)
def test_numbers_in_any_form_and_none_or_nan(found):
    assert validate_rewards("judge", found, PROMPTS) == [1.0, 0.5, None]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([1.0], "returned 1 rewards for 3 completions; it must return one for each"),
        (torch.ones(4), "returned 4 rewards for 3 completions"),
        (1.0, "returned 1.0 for 3 completions; it must return a list with one reward for each"),
        (None, "returned None for 3 completions; it must return a list"),
        (torch.tensor(1.0), r"returned tensor\(1.\) \(Tensor\) for 3 completions; it must return a list"),
        ("abc", r"returned 'abc' \(str\) for 3 completions; it must return a list"),
        ({"a": 1, "b": 2, "c": 3}, r"\(dict\) for 3 completions; it must return a list"),
        ([1.0, "right", 0.0], r"returned 'right' \(str\) for completion 1 of its batch; it must be a number or None"),
        ([[1.0], [1.0], [0.0]], r"returned \[1.0\] \(list\) for completion 0"),
        (np.ones((3, 1)), r"returned \[1.0\] \(list\) for completion 0"),
        ([1.0, 1j, 0.0], r"\(complex\) for completion 1"),
        ([0.0, 0.0, math.inf], r"returned inf for completion 2 of its batch \(prompt: three\); the mean of its group"),
        ([0.0, -math.inf, 0.0], r"returned -inf for completion 1 of its batch \(prompt: two\)"),
        ([1e39, 0.0, 0.0], r"returned 1e\+39 for completion 0"),  # infinite in float32
        ([10**400, 0.0, 0.0], r"returned 1000.* for completion 0"),
    ],
)
def test_invalid_rewards_are_named(found, message):
    with pytest.raises(RewardError, match=rf"the reward function 'judge' .*{message}"):
        validate_rewards("judge", found, PROMPTS)


def broken(prompts, **kwargs):
    return [1 / len([]) for _ in prompts]


async def broken_later(prompts, **kwargs):
    return broken(prompts)


@pytest.mark.parametrize("reward", [broken, broken_later])
def test_an_exception_of_a_reward_function_passes_unchanged(tmp_path, text_figures, text_model_path, reward):
    own = [reward]
    trainer = make(tmp_path, text_figures, text_model_path, own)
    assert own == [reward]  # the caller's list stays as it was
    with pytest.raises(ZeroDivisionError) as raised:
        trainer.train()
    assert raised.traceback[-1].path == Path(__file__)


def test_nan_and_none_are_bit_identical(tmp_path, text_figures, text_model_path):
    def judge_with(missing):
        def judge(prompts, **kwargs):
            return [missing if place % 4 == 3 else float(place % 2) for place in range(len(prompts))]

        return judge

    none, nan = (
        train(tmp_path, text_figures, text_model_path, judge_with(missing), method="cepo")
        for missing in (None, math.nan)
    )
    for trainer in (none, nan):
        assert logged(trainer, "cepo/verdicts/missing") == [0.25, 0.25]
        assert logged(trainer, "rewards/judge/mean") == pytest.approx([1 / 3] * 2)
    assert logged(none, "grad_norm") == logged(nan, "grad_norm") != [0.0, 0.0]
    for name, weight in weights_of(none).items():
        assert torch.equal(weight, weights_of(nan)[name])


def advantages_of(tmp_path, dataset, model, rewards, monkeypatch, **options):
    """(B,) TRL's advantages of the rewards of one batch."""
    seen = []
    generate = CEPOTrainer._generate_and_score_completions

    def noted(self, inputs):
        seen.append((batch := generate(self, inputs))["advantages"])
        return batch

    monkeypatch.setattr(CEPOTrainer, "_generate_and_score_completions", noted)
    trainer = train(tmp_path, dataset, model, rewards, max_steps=1, **options)
    return seen[0], trainer


def partly(prompts, **kwargs):
    return [0.0, 1.0, 1.0, None] * (len(prompts) // 4)


def lengths(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


@pytest.mark.parametrize(
    ("scale", "aggregation"),
    [*((scale, "sum_then_normalize") for scale in ("group", "batch", "none")), ("group", "normalize_then_sum")],
)
def test_an_unscored_rollout_has_no_advantage(tmp_path, text_figures, text_model_path, monkeypatch, scale, aggregation):
    """It does not count in its group's mean, either, even if a function of weight 0 returned a number."""
    options = {"scale_rewards": scale, "multi_objective_aggregation": aggregation, "method": "grpo"}
    alone, _ = advantages_of(tmp_path, text_figures, text_model_path, [partly], monkeypatch, **options)
    beside, trainer = advantages_of(
        tmp_path,
        text_figures,
        text_model_path,
        [partly, lengths],
        monkeypatch,
        reward_weights=[1.0, 0.0],
        **options,
    )
    assert (alone[3::4] == 0).all()
    assert alone[0] < 0 < alone[1]
    torch.testing.assert_close(beside, alone, atol=1e-5, rtol=1e-5)
    if scale == "none":
        assert alone.tolist() == pytest.approx([-2 / 3, 1 / 3, 1 / 3, 0.0] * 2)
    assert logged(trainer, "cepo/verdicts/missing") == [0.25]


def test_unscored_rollouts_by_hand():
    nan = math.nan
    rewards = torch.tensor([[nan, 3.0, nan], [1.0, 3.0, nan], [nan, nan, 2.0], [nan, 3.0, nan]])
    found = mask_unscored_rollouts(rewards, torch.tensor([1.0, 0.0, 0.5]))
    assert found.isnan().tolist() == [[True] * 3, [False, False, True], [True, True, False], [True] * 3]
    assert found[1, :2].tolist() == [1.0, 3.0]
    assert mask_unscored_rollouts(rewards, torch.ones(3)).nan_to_num(-1).equal(rewards.nan_to_num(-1))


@given(st.lists(st.sampled_from([None, 0.0, 1.0, -2.5]), min_size=4, max_size=4))
def test_groups_with_missing_rewards_in_plain_python(rewards):
    """Against `group_advantages` of cepo evaluate and explain."""
    known = [reward for reward in rewards if reward is not None]
    found = group_advantages(rewards)
    assert all(math.isfinite(value) for value in found)
    assert all(value == 0 for reward, value in zip(rewards, found, strict=True) if reward is None)
    assert sum(found) == pytest.approx(0, abs=1e-6)
    assert (max(found, default=0) > 0) == (len(set(known)) > 1)


class Judge(nn.Module):
    """A reward model with the attributes that TRL reads."""

    def __init__(self, value):
        super().__init__()
        self.value = value
        self.config = type("Config", (), {"_name_or_path": "judges/hard"})()

    def forward(self, input_ids, **kwargs):
        return type("Output", (), {"logits": torch.full((len(input_ids), 1), self.value)})()


def test_an_infinite_reward_of_a_model_is_refused(tmp_path, text_figures, text_model_path):
    def trained(value):
        tokenizer = AutoTokenizer.from_pretrained(text_model_path)
        args = CEPOConfig(output_dir=str(tmp_path), method="grpo", **(QUICK | {"max_steps": 1}))
        trainer = CEPOTrainer(
            text_model_path, [half_right, Judge(value)], args, text_figures, reward_processing_classes=[None, tokenizer]
        )
        trainer.train()
        return trainer

    with pytest.raises(RewardError, match="the reward model 'hard' gave rollout 0 of the batch inf"):
        trained(math.inf)
    assert logged(trained(math.nan), "reward") == [0.5]  # the reward of the function alone


# From the command line ------------------------------------------------------------------------------------------------

calls = 0


def breaks_later(prompts, **kwargs):
    """Fails in the third step, once."""
    global calls
    calls += 1
    if calls == 3:
        raise OSError(2, "No such file or directory")  # as for missing data of its own, not an error of the run's disk
    return [float(place % 2) for place in range(len(prompts))]


def silent(prompts, **kwargs):
    return [None] * len(prompts)


SMALL = {
    "max_steps": 4,
    "save_steps": 100,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 8,
    "figures_problems": 16,
    "eval_problems": 0,
}


def run(out, reward, *flags, **options):
    options = {**SMALL, "output_dir": out, "reward_funcs": f"{__name__}.{reward.__name__}", **options}
    return cli.main(["train", *flags, *(part for name, value in options.items() for part in (f"--{name}", str(value)))])


def fails(out, **options):
    with pytest.raises(FileNotFoundError):
        run(out, breaks_later, **options)


def test_a_run_whose_reward_function_raises_saves_a_checkpoint(tmp_path, capsys):
    global calls
    calls = 0
    fails(tmp_path)
    saved = last_whole_checkpoint(tmp_path)
    assert saved == tmp_path / "checkpoint-2"
    assert f"Resume with: --resume_from_checkpoint {saved}" in capsys.readouterr().out
    assert run(tmp_path, breaks_later, resume_from_checkpoint=saved) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 4


def test_a_checkpoint_of_the_same_step_is_not_overwritten(tmp_path, capsys):
    """The failure comes after sampling, which has advanced the random state."""
    global calls
    calls = 0
    fails(tmp_path / "one", save_steps=1)
    assert "Resume with" in capsys.readouterr().out
    assert run(tmp_path / "one", breaks_later, resume_from_checkpoint=tmp_path / "one" / "checkpoint-2") == 0
    calls = 3
    assert run(tmp_path / "two", breaks_later) == 0
    one, two = (json.loads((tmp_path / name / "trainer_state.json").read_text()) for name in ("one", "two"))
    keys = ("loss", "grad_norm", "reward", "completions/mean_length")
    histories = [[{key: entry.get(key) for key in keys} for entry in state["log_history"]] for state in (one, two)]
    assert histories[0] == histories[1]


def test_a_run_without_any_verdict_ends_with_a_warning(tmp_path, capsys, caplog):
    assert run(tmp_path, silent) == 0
    assert "cepo/verdicts/missing: 3 times in a row, now 100 %" in caplog.text
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in history if "grad_norm" in entry]
    assert [entry["grad_norm"] for entry in steps] == [0.0] * 4
    assert [entry["cepo/verdicts/missing"] for entry in steps] == [1.0] * 4
