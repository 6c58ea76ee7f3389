"""Non-finite gradients: the step is skipped and counted, leaves no trace, and several in a row stop the run."""

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
    """Multiplies the losses of some steps, counted from 0."""

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
    """Weights and optimizer state."""
    states = trainer.optimizer.state_dict()["state"]
    return {
        **weights_of(trainer),
        **{f"{key}/{name}": value for key, own in states.items() for name, value in own.items()},
    }


def is_finite(trainer):
    return all(torch.as_tensor(value).isfinite().all() for value in everything_of(trainer).values())


@pytest.mark.parametrize(("by", "clip"), [(math.nan, 1.0), (math.inf, 0.0)])
def test_a_skipped_step_leaves_no_trace(tmp_path, text_figures, text_model_path, spoil, by, clip):
    """Weights (without decay), Adam's state, and the steps after it."""
    options = {"method": "grpo", "max_grad_norm": clip, "weight_decay": 0.1, "optim": "adamw_torch", "max_steps": 3}
    spoil(1, by=by)
    trainer = train(tmp_path, text_figures, text_model_path, **options)
    assert logged(trainer, "cepo/skipped_steps") == [0.0, 1.0, 0.0]
    assert is_finite(trainer)
    norms = logged(trainer, "grad_norm")
    assert not math.isfinite(norms[1])
    assert norms[0] > 0 < norms[2]
    assert {int(own["step"]) for own in trainer.optimizer.state_dict()["state"].values()} == {2}
    # With a loss of 0 instead, weights decay and momentum moves them.
    spoil(1, by=0.0)
    other = train(tmp_path, text_figures, text_model_path, **options)
    assert any(not torch.equal(weight, weights_of(other)[name]) for name, weight in weights_of(trainer).items())


def test_weights_and_optimizer_state_are_those_before_the_skipped_steps(tmp_path, text_figures, text_model_path, spoil):
    before = train(tmp_path, text_figures, text_model_path, max_steps=1, lr_scheduler_type="constant")
    spoil(1, 2)
    after = train(tmp_path, text_figures, text_model_path, max_steps=3, lr_scheduler_type="constant")
    assert logged(after, "cepo/skipped_steps") == [0.0, 1.0, 1.0]
    one, other = everything_of(before), everything_of(after)
    assert one.keys() == other.keys()
    assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(other[key])) for key, value in one.items())


def test_one_nonfinite_micro_batch_skips_its_step(tmp_path, text_figures, text_model_path, spoil):
    spoil(0, micro=1)
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 2}
    trainer = train(tmp_path, text_figures, text_model_path, **options)
    assert logged(trainer, "cepo/skipped_steps") == [1.0, 0.0]
    assert is_finite(trainer)


@pytest.mark.parametrize("method", ["cepo", "rlcsd", "vppo", "opsd", "sdpo"])
def test_every_kind_of_loss_recovers(tmp_path, text_figures, text_model_path, spoil, monkeypatch, method):
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
def test_teacher_weights_after_a_skipped_step(tmp_path, text_figures, text_model_path, spoil, monkeypatch, teacher):
    """An average does not move; a copy that is due is made, or it would lag two more steps."""
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


def test_several_in_a_row_stop_the_run_with_a_checkpoint(tmp_path, text_figures, text_model_path, spoil):
    spoil(*range(1, 9))
    trainer = make(tmp_path, text_figures, text_model_path, max_steps=9, save_strategy="no")
    with pytest.raises(GradientError, match=r"gradients of 3 optimizer steps in a row, up to step 4, .* \(norm nan\)"):
        trainer.train()
    assert trainer.state.global_step == 4
    assert is_finite(trainer)
    folder = tmp_path / "out" / "checkpoint-4"
    saved, weights = load_file(folder / "model.safetensors"), weights_of(trainer)
    assert saved.keys() <= weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in saved.items())
    # A resumed run counts anew.
    with pytest.raises(GradientError, match="up to step 7"):
        train(tmp_path, text_figures, text_model_path, max_steps=9, resume_from_checkpoint=str(folder))


def test_fewer_in_a_row_do_not_stop_the_run(tmp_path, text_figures, text_model_path, spoil):
    spoil(0, 1, 3, 4)
    trainer = train(tmp_path, text_figures, text_model_path, max_steps=6)
    assert logged(trainer, "cepo/skipped_steps") == [1.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="max_nonfinite_grad_steps must be an integer and at least 1, got 0"):
        CEPOConfig(output_dir=str(tmp_path), max_nonfinite_grad_steps=0, **QUICK)
    spoil(0)
    with pytest.raises(GradientError, match="gradients of 1 optimizer steps in a row, up to step 1"):
        train(tmp_path, text_figures, text_model_path, max_nonfinite_grad_steps=1)


def test_resuming_between_skipped_steps_is_bit_identical(tmp_path, text_figures, text_model_path, spoil, monkeypatch):
    """Weights, optimizer, teacher, log, and the number of skipped steps in a row."""
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
    with pytest.raises(GradientError, match="3 optimizer steps in a row, up to step 4"):
        train(
            tmp_path / "again",
            text_figures,
            text_model_path,
            half_right,
            resume_from_checkpoint=str(tmp_path / "in" / "out" / "checkpoint-3"),
            **options,
        )


def test_from_the_command_line(tmp_path, spoil, capsys, caplog):
    arguments = ["train", *SMALL, "--max_steps=9", "--method=grpo", f"--output_dir={tmp_path}"]
    arguments += [f"--reward_funcs={__name__}.by_index"]
    spoil(2, 3, 4)
    assert cli.main(arguments) == 1
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("cepo: error")]
    assert "gradients of 3 optimizer steps in a row, up to step 5, were not finite (norm nan)" in line
    assert f"Resume with: --resume_from_checkpoint {tmp_path}/checkpoint-5" in printed.out
    assert "skipped step 3: its gradient is not finite" in caplog.text
    before = set(tmp_path.iterdir())
    assert tmp_path / "checkpoint-5" in before
    assert tmp_path / "summary.json" not in before
    assert cli.main([*arguments, "--resume_from_checkpoint", "true"]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 9


def by_index(completions, **kwargs):
    return half_right(completions)


class Engine:
    """The attributes of an accelerator that NonfiniteGradients uses."""

    def __init__(self, skipped=False, scale=None):
        self.optimizer_step_was_skipped, self.is_main_process = skipped, True
        self.scaler = scale and type("Scaler", (), {"get_scale": lambda _: scale})()


def test_consecutive_skips_by_hand(tmp_path, text_figures, text_model_path):
    """DeepSpeed reports an overflow as a norm of -1."""
    trainer, gradients = make(tmp_path, text_figures, text_model_path), NonfiniteGradients(2)
    for norm, in_a_row in ((1.0, 0), (-1.0, 1), (0.0, 0), (math.nan, 1), (None, 1), (math.inf, 2)):
        gradients.check(trainer, norm)
        assert gradients.in_a_row == in_a_row
    assert gradients.stops


def test_a_step_that_deepspeed_has_applied_stops_the_run(tmp_path, text_figures, text_model_path):
    trainer = make(tmp_path, text_figures, text_model_path)
    trainer.is_deepspeed_enabled, trainer.accelerator = True, Engine(skipped=True)
    trainer._gradients.check(trainer, -1.0)
    trainer.accelerator = Engine()
    with pytest.raises(GradientError, match="DeepSpeed has applied it") as raised:
        trainer._gradients.check(trainer, -1.0)
    assert raised.value.weights_corrupted


@pytest.mark.parametrize(("scale", "stops"), [(65536.0, False), (1.0, False), (0.5, True), (None, True)])
def test_float16_may_search_its_loss_scale(tmp_path, text_figures, text_model_path, scale, stops):
    trainer = make(tmp_path, text_figures, text_model_path)
    trainer.accelerator, gradients = Engine(scale=scale), NonfiniteGradients(1)
    parameter = next(trainer.model.parameters())
    parameter.grad = torch.full_like(parameter, math.nan)
    gradients.check(trainer, math.nan)
    assert gradients.stops is stops
    assert (parameter.grad is None) == (scale is None)  # a scaler skips the step itself
