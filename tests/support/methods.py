"""Credit of a method on inputs by hand, and one real step of it."""

import torch

from cepo import method_options, policy_path
from cepo.methods import METHODS, CreditInputs
from cepo.methods.options import DivergenceOptions, OtherModelOptions
from tests.support.training import half_right, logged, train, weights_of, wrong_answers


def inputs_of(evidence, advantages, *, mask=None, scored=None, verdicts=None, unscorable=None):
    """Inputs from lists; by default all tokens are trained and scored, and rollouts with A > 0 are correct."""
    evidence, advantages = torch.tensor(evidence, dtype=torch.float64), torch.tensor(advantages, dtype=torch.float64)
    mask = torch.ones_like(evidence, dtype=torch.bool) if mask is None else torch.tensor(mask)
    scored = torch.ones_like(advantages, dtype=torch.bool) if scored is None else torch.tensor(scored)
    verdicts = advantages.sign() if verdicts is None else torch.tensor(verdicts, dtype=torch.float64)
    unscorable = torch.zeros_like(mask) if unscorable is None else torch.tensor(unscorable)
    return CreditInputs(advantages, evidence, mask, scored, verdicts, unscorable)


def distills(method):
    """Whether the loss of a method is a divergence by default."""
    return issubclass(METHODS[method].options, DivergenceOptions)


def needed_by(method):
    """The options without which a method is refused."""
    return (
        {"teacher_model_name_or_path": policy_path()} if issubclass(METHODS[method].options, OtherModelOptions) else {}
    )


def placed_by(method, inputs, step=0, **options):
    options = method_options(method, **options)
    return options.method_spec.token_advantages(inputs, options, step)


def check_a_real_step(tmp_path, task, loss_inputs, monkeypatch, method, *, reward=half_right, **options):
    """One step of the real trainer, with images or without: token advantages that differ from GRPO's reach the loss.

    Returns:
        The trainer, and the micro-batch that TRL's loss was given.
    """
    wrong_answers(monkeypatch)
    dataset, model = task
    options = {"max_steps": 1, "skip_zero_advantage": False, **options}
    trainer = train(tmp_path, dataset, model, reward, method=method, **options)
    batch = loss_inputs.pop()
    mask = batch["completion_mask"].bool()
    assert batch["advantages"].shape == mask.shape
    assert (batch["advantages"][~mask] == 0).all()
    assert logged(trainer, "cepo/credit/changed")[0] > 0
    assert all(torch.isfinite(weight).all() for weight in weights_of(trainer).values())
    return trainer, batch
