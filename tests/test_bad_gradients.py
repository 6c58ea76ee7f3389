"""Gradients that are not finite: the step is skipped and counted, nothing of it stays, and a run of them ends."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from cepo import CEPOConfig, CEPOTrainer, cli
from cepo.trainer.nonfinite_gradients import GradientError, NonfiniteGradients
from tests.support.command_line import SMALL
from tests.support.training import QUICK, half_right, logged, make, train, weights_of, wrong_answers


@pytest.fixture
def spoil(monkeypatch):
    """Makes the losses of some steps, counted from 0, into something else."""

    whole = CEPOTrainer.compute_loss

    def at(*steps, by=math.nan, micro=None):
        seen = []

        def compute_loss(self, *args, **kwargs):
            loss = whole(self, *args, **kwargs)
            seen.append(self.state.global_step)
            bad = self.state.global_step in steps and (micro is None or seen.count(seen[-1]) == micro)
            return loss * by if bad else loss

        monkeypatch.setattr(CEPOTrainer, "compute_loss", compute_loss)

    return at


def everything_of(trainer):
    """The weights, and what the optimiser remembers of each."""
    states = trainer.optimizer.state_dict()["state"]
    return {
        **weights_of(trainer),
        **{f"{key}/{name}": value for key, own in states.items() for name, value in own.items()},
    }


def is_finite(trainer):
    return all(torch.as_tensor(value).isfinite().all() for value in everything_of(trainer).values())


@pytest.mark.parametrize(("by", "clip"), [(math.nan, 1.0), (math.inf, 0.0)])
def test_a_step_that_is_skipped_leaves_nothing_behind(tmp_path, text_figures, text_model_path, spoil, by, clip):
    """Neither in the weights (decay included), nor in Adam's memory, nor in the run after it."""
    options = {"method": "grpo", "max_grad_norm": clip, "weight_decay": 0.1, "optim": "adamw_torch", "max_steps": 3}
    spoil(1, by=by)
    trainer = train(tmp_path, text_figures, text_model_path, **options)
    assert logged(trainer, "cepo/skipped_steps") == [0.0, 1.0, 0.0]
    assert is_finite(trainer)
    norms = logged(trainer, "grad_norm")
    assert not math.isfinite(norms[1])
    assert norms[0] > 0 < norms[2]
    assert {int(own["step"]) for own in trainer.optimizer.state_dict()["state"].values()} == {2}
    # Where the loss is nothing else than 0 times what it was, the weights decay, and momentum moves them.
    spoil(1, by=0.0)
    other = train(tmp_path, text_figures, text_model_path, **options)
    assert any(not torch.equal(weight, weights_of(other)[name]) for name, weight in weights_of(trainer).items())


def test_the_weights_after_it_are_those_before_it(tmp_path, text_figures, text_model_path, spoil):
    before = train(tmp_path, text_figures, text_model_path, max_steps=1, lr_scheduler_type="constant")
    spoil(1, 2)
    after = train(tmp_path, text_figures, text_model_path, max_steps=3, lr_scheduler_type="constant")
    assert logged(after, "cepo/skipped_steps") == [0.0, 1.0, 1.0]
    one, other = everything_of(before), everything_of(after)
    assert one.keys() == other.keys()
    assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(other[key])) for key, value in one.items())


def test_one_bad_micro_batch_takes_its_step_along(tmp_path, text_figures, text_model_path, spoil):
    spoil(0, micro=1)
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 2}
    trainer = train(tmp_path, text_figures, text_model_path, **options)
    assert logged(trainer, "cepo/skipped_steps") == [1.0, 0.0]
    assert is_finite(trainer)


@pytest.mark.parametrize("method", ["cepo", "rlcsd", "vppo", "opsd", "sdpo"])
def test_methods_of_every_kind_of_loss_survive_it(tmp_path, text_figures, text_model_path, spoil, monkeypatch, method):
    wrong_answers(monkeypatch)
    spoil(0)
    reward, more = half_right, {}
    if method == "vppo":
        reward, more = [half_right, third], {"first_error_reward": "third", "reward_weights": [1.0, 0.0]}
    trainer = train(tmp_path, text_figures, text_model_path, reward, method=method, **more)
    assert logged(trainer, "cepo/skipped_steps") == [1.0, 0.0]
    assert logged(trainer, "grad_norm")[1] > 0
    assert is_finite(trainer)


def third(completions, **kwargs):
    return [3.0] * len(completions)


@pytest.mark.parametrize("teacher", ["ema", "synced"])
def test_an_average_does_not_follow_a_step_that_was_not_made(
    tmp_path, text_figures, text_model_path, spoil, monkeypatch, teacher
):
    """A copy is due after two steps, made or not, or it would lag behind by two more."""
    wrong_answers(monkeypatch)
    spoil(1)
    own = {"ema": {"teacher_ema_decay": 0.5}, "synced": {"teacher_sync_steps": 2}}[teacher]
    copies, policies = [], []
    follow = CEPOTrainer._maybe_log_save_evaluate

    def note(self, *args, **kwargs):
        copies.append({name: copy.clone() for name, copy in self._teachers.weights._copy.items()})
        policies.append(weights_of(self))
        return follow(self, *args, **kwargs)

    monkeypatch.setattr(CEPOTrainer, "_maybe_log_save_evaluate", note)
    train(tmp_path, text_figures, text_model_path, half_right, teacher=teacher, max_steps=3, **own)
    name = next(iter(copies[0]))
    if teacher == "ema":
        assert torch.equal(copies[1][name], copies[0][name])
        torch.testing.assert_close(copies[2][name], (copies[1][name] + policies[2][name]) / 2)
    else:
        assert torch.equal(copies[1][name], policies[0][name])
    assert not torch.equal(copies[-1][name], copies[0][name])


# A run of them --------------------------------------------------------------------------------------------------------


def test_several_in_a_row_stop_the_run_with_a_checkpoint_from_before(tmp_path, text_figures, text_model_path, spoil):
    spoil(*range(1, 9))
    trainer = make(tmp_path, text_figures, text_model_path, max_steps=9, save_strategy="no")
    with pytest.raises(GradientError, match=r"gradients of 3 optimiser steps in a row, up to step 4, .* \(norm nan\)"):
        trainer.train()
    assert trainer.state.global_step == 4
    assert is_finite(trainer)
    folder = tmp_path / "out" / "checkpoint-4"
    saved, weights = load_file(folder / "model.safetensors"), weights_of(trainer)
    assert saved.keys() <= weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in saved.items())
    # Who goes on gets as many again.
    with pytest.raises(GradientError, match="up to step 7"):
        train(tmp_path, text_figures, text_model_path, max_steps=9, resume_from_checkpoint=str(folder))


def test_single_ones_do_not_stop_it(tmp_path, text_figures, text_model_path, spoil):
    spoil(0, 1, 3, 4)
    trainer = train(tmp_path, text_figures, text_model_path, max_steps=6)
    assert logged(trainer, "cepo/skipped_steps") == [1.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="max_nonfinite_grad_steps must be at least 1, got 0"):
        CEPOConfig(output_dir=str(tmp_path), max_nonfinite_grad_steps=0, **QUICK)
    spoil(0)
    with pytest.raises(GradientError, match="gradients of 1 optimiser steps in a row, up to step 1"):
        train(tmp_path, text_figures, text_model_path, max_nonfinite_grad_steps=1)


def test_a_run_that_comes_back_amid_bad_steps_goes_on_to_the_bit(
    tmp_path, text_figures, text_model_path, spoil, monkeypatch
):
    """Weights, optimiser, teacher, log, and how many there were in a row."""
    wrong_answers(monkeypatch)
    options = {"max_steps": 5, "teacher": "ema", "teacher_ema_decay": 0.5, "save_strategy": "steps", "save_steps": 1}
    spoil(1, 3)
    whole = train(tmp_path, text_figures, text_model_path, half_right, **options)
    back = train(
        tmp_path / "back",
        text_figures,
        text_model_path,
        half_right,
        resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"),
        **options,
    )
    one, other = everything_of(whole), everything_of(back)
    assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(other[key])) for key, value in one.items())
    for name, copy in whole._teachers.weights._copy.items():
        assert torch.equal(copy, back._teachers.weights._copy[name])
    assert logged(back, "loss") == logged(whole, "loss")
    assert logged(back, "cepo/skipped_steps") == [0.0, 1.0, 0.0, 1.0, 0.0]
    spoil(1, 2, 3)
    with pytest.raises(GradientError, match="up to step 4"):
        train(tmp_path / "in", text_figures, text_model_path, half_right, **options)
    with pytest.raises(GradientError, match="3 optimiser steps in a row, up to step 4"):
        train(
            tmp_path / "again",
            text_figures,
            text_model_path,
            half_right,
            resume_from_checkpoint=str(tmp_path / "in" / "out" / "checkpoint-3"),
            **options,
        )


def test_from_the_command_line(tmp_path, spoil, capsys, caplog):
    flags = {**SMALL, "max_steps": 9, "output_dir": tmp_path, "reward_funcs": "tests.test_bad_gradients.by_place"}
    flags |= {"method": "grpo"}
    arguments = ["train", *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]
    spoil(2, 3, 4)
    assert cli.main(arguments) == 1
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("cepo: error")]
    assert "gradients of 3 optimiser steps in a row, up to step 5, were not finite (norm nan)" in line
    assert f"Resume with: --resume_from_checkpoint {tmp_path}/checkpoint-5" in printed.out
    assert "step 3 was skipped: its gradient is not finite" in caplog.text
    before = set(tmp_path.iterdir())
    assert tmp_path / "checkpoint-5" in before
    assert tmp_path / "summary.json" not in before
    assert cli.main([*arguments, "--resume_from_checkpoint", "true"]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 9


def by_place(completions, **kwargs):
    return half_right(completions)


# What other engines do ------------------------------------------------------------------------------------------------


def test_a_norm_below_zero_is_deepspeeds_word_for_no_number():
    bad = NonfiniteGradients(2)
    for norm, in_a_row in ((1.0, 0), (-1.0, 1), (0.0, 0), (math.nan, 1), (math.inf, 2)):
        bad.note(norm)
        assert bad.in_a_row == in_a_row
    assert bad.stops
    bad.note(math.inf, may_stop=False)  # float16 has not found its scale
    assert not bad.stops


class Engine:
    """An accelerator, as far as it is asked."""

    def __init__(self, skipped=False, scale=None):
        self.optimizer_step_was_skipped, self.is_main_process = skipped, True
        self.scaler = scale and type("Scaler", (), {"get_scale": lambda _: scale})()


def test_a_step_that_deepspeed_has_made_all_the_same_ends_the_run(tmp_path, text_figures, text_model_path, monkeypatch):
    trainer = make(tmp_path, text_figures, text_model_path)
    trainer.is_deepspeed_enabled, trainer.accelerator = True, Engine(skipped=True)
    trainer._skip(trainer.model, -1.0)
    trainer.accelerator = Engine()
    with pytest.raises(GradientError, match="DeepSpeed has made the step") as raised:
        trainer._skip(trainer.model, -1.0)
    assert raised.value.spoilt


@pytest.mark.parametrize(("scale", "seeks"), [(65536.0, True), (1.0, True), (0.5, False), (None, False)])
def test_float16_may_look_for_its_scale(tmp_path, text_figures, text_model_path, scale, seeks):
    trainer = make(tmp_path, text_figures, text_model_path)
    trainer.accelerator = Engine(scale=scale)
    assert trainer._seeks_scale() is seeks
    parameter = next(trainer.model.parameters())
    parameter.grad = torch.full_like(parameter, math.nan)
    trainer._skip(trainer.model, math.nan)
    assert (parameter.grad is None) == (scale is None)  # the scaler looks at them, and skips by itself
