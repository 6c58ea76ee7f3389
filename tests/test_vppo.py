"""VPPO: the kept prefix of a wrong rollout is worth a part of a right one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from trl.rewards import accuracy_reward

from cepo import load_figures, method_options
from cepo.methods import METHODS, LabeledGroup
from cepo.references.groups import Rollout
from cepo.tasks.figures import first_error
from tests.support.methods import check_a_real_step, inputs_of, placed_by
from tests.support.training import half_right, logged, loss_inputs, make, task, train, weights_of

from .reference import loops

__all__ = ["loss_inputs", "task"]  # fixtures


def advantages_of(lengths, correct, errors, *, row=None, prompt_tokens=0, **own):
    attempts = [Rollout("7", 0.0, verdict, "", error) for verdict, error in zip(correct, errors, strict=True)]
    tokens = [["x"] * length for length in lengths]
    options = method_options("vppo", first_error_reward="given", **own)
    group = LabeledGroup(row or {}, tokens, attempts, [0.0] * len(attempts), prompt_tokens)
    return METHODS["vppo"].token_values(group, options)


def test_by_hand():
    """A right rollout, one with its first error after three of four tokens, one wrong from the start: mean 11/24."""
    found = advantages_of([2, 4, 3], [True, False, False], [None, 3, 0])
    mean = (1 + 3 / 8 + 0) / 3
    expected = [[1 - mean] * 2, [0.5 - mean] * 3 + [-mean], [-mean] * 3]
    for row, values in zip(found, expected, strict=True):
        assert row == pytest.approx(values)


def test_groups_without_variance():
    assert advantages_of([2, 3], [True, True], [None, None]) == [[0.0] * 2, [0.0] * 3]
    wrong = advantages_of([4, 4], [False, False], [4, 0], prefix_margin=1)  # such a group still learns
    assert wrong[0] == pytest.approx([0.5 - 3 / 16] * 3 + [-3 / 16])
    assert wrong[1] == pytest.approx([-3 / 16] * 4)


def test_the_margin_is_the_prompts_length_unless_it_is_given():
    prompt = advantages_of([6], [False], [5], prompt_tokens=3)
    assert prompt == advantages_of([6], [False], [5], prompt_tokens=9, prefix_margin=3)
    assert prompt[0] == pytest.approx([0.5 - 1 / 6] * 2 + [-1 / 6] * 4)


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from([True, False, None]), st.none() | st.integers(0, 6)),
        min_size=1,
        max_size=5,
    ),
    st.floats(0, 1),
    st.integers(0, 4),
    st.booleans(),
)
def test_agrees_with_plain_loops(rollouts, prefix_value, margin, nonnegative):
    lengths, correct, errors = zip(*rollouts, strict=True)
    errors = [None if error is None else min(error, length) for error, length in zip(errors, lengths, strict=True)]
    options = {"prefix_value": prefix_value, "prefix_margin": margin, "nonnegative_prefix": nonnegative}
    found = advantages_of(lengths, correct, errors, **options)
    expected = loops.vppo(lengths, correct, errors, prefix_value, margin, nonnegative)
    for row, values in zip(found, expected, strict=True):
        assert row == pytest.approx(values)


def test_what_is_shown_is_what_the_kept_prefix_gets():
    """A right rollout is level with itself, whatever GRPO's advantage is; of a wrong one the prefix takes less "
    "blame."""
    found = advantages_of([4, 4], [True, False], [None, 2])
    placed = placed_by("vppo", inputs_of(found, [0.9, -0.9]), first_error_reward="given")
    assert placed.moved.tolist() == [[False] * 4, [True] * 4]
    assert (placed.shift[1, :2] < 0).all()
    assert (placed.shift[1, 2:] > 0).all()
    control = placed_by("vppo", inputs_of(found, [0.9, -0.9]), first_error_reward="x", negative_advantage_weight=0.0)
    assert control.advantages[1].tolist() == [0.0] * 4
    assert_close(control.advantages[0], placed.advantages[0])


def test_the_margin_counts_text_and_no_images():
    from cepo.scoring.requests import Prompt, text_length

    types = torch.tensor([0, 1, 1, 1, 0])
    assert text_length(Prompt((5, 6, 6, 6, 7), {"pixel_values": torch.zeros(1)}, {"mm_token_type_ids": types})) == 2
    assert text_length(Prompt((5, 6, 7))) == 3


def test_the_figures_task_knows_the_first_error():
    row = {"start": 60, "labels": [58, 70], "angles": [62, 48], "prompt": [{"content": ""}]}
    right = ["60", " and", " 58", " leave", " 62", ". 62", " and", " 70", " leave", " 48", ". \\boxed{(62, 48)}"]
    assert first_error(row, right) is None
    slipped = [*right[:9], " 47", ". \\boxed{(62, 47)}"]
    assert first_error(row, slipped) == 9
    misread = ["60", " and", " 5", "7", " leave", " 63", *right[5:]]
    assert first_error(row, misread) == 2  # where the wrong number begins
    group = LabeledGroup(row, [right, slipped], [Rollout("7", 1.0, True), Rollout("8", 0.0, False)], [0.7, -0.7], 0)
    found = METHODS["vppo"].token_values(group, method_options("vppo"))
    mean = (1 + 0.5 * 9 / 11) / 2
    assert found[1] == pytest.approx([0.5 - mean] * 9 + [-mean] * 2)


def first_errors(completions, completion_ids, **kwargs):
    """A process verifier's word: halfway through every other rollout."""
    return [len(ids) // 2 if row % 2 == 0 else None for row, ids in enumerate(completion_ids)]


OWN = {"prefix_margin": 0, "first_error_reward": "first_errors", "reward_weights": [1.0, 0.0]}


def test_a_real_step_with_errors_from_a_reward_function(tmp_path, task, loss_inputs, monkeypatch):
    rewards = [half_right, first_errors]
    trainer, batch = check_a_real_step(tmp_path, task, loss_inputs, monkeypatch, "vppo", reward=rewards, **OWN)
    assert logged(trainer, "cepo/rows_scored") == [0.0]  # no teacher
    mask, lengths = batch["completion_mask"].bool(), batch["completion_mask"].sum(dim=1).tolist()
    for row, verdict in enumerate(batch["verdicts"].tolist()):
        values, half = batch["advantages"][row][mask[row]], lengths[row] // 2
        if verdict > 0:
            assert (values > 0).all()
            assert values.unique().numel() == 1
        else:
            assert (values[half:] < 0).all()
            assert_close(values[:half], values[half:][:1].expand(half) + 0.5)


def test_a_real_step_with_errors_from_the_task(tmp_path, loss_inputs):
    options = {"method": "vppo", "max_steps": 1, "max_completion_length": 176, "prefix_margin": 0}
    train(tmp_path, load_figures("train", 12), reward=accuracy_reward, **options)
    (batch,) = loss_inputs
    wrong = batch["verdicts"] < 0
    assert wrong.any()
    assert (batch["advantages"][wrong] > -1).all()
    assert batch["advantages"][wrong].unique().numel() > 2


def test_a_batch_that_is_all_wrong_still_learns(tmp_path, text_figures, text_model_path, loss_inputs):
    """GRPO's advantages are all 0 there, and yet no row is left out of the update."""

    def all_wrong(completions, **kwargs):
        return [0.0] * len(completions)

    options = {"method": "vppo", "max_steps": 1, **OWN}
    trainer = train(tmp_path, text_figures, text_model_path, [all_wrong, first_errors], **options)
    (batch,) = loss_inputs
    assert len(batch["advantages"]) == 8
    assert (batch["advantages"] != 0).any(dim=1).all()
    assert logged(trainer, "grad_norm")[0] > 0
    assert all(torch.isfinite(weight).all() for weight in weights_of(trainer).values())


def test_what_it_needs_is_said_before_training(tmp_path, text_figures, text_model_path):
    unknown = text_figures.remove_columns("labels")
    with pytest.raises(ValueError, match=r"needs first-error positions; set first_error_reward"):
        make(tmp_path, unknown, text_model_path, half_right, method="vppo")
    with pytest.raises(ValueError, match="first_error_reward='other' names no reward function"):
        make(tmp_path, unknown, text_model_path, half_right, method="vppo", first_error_reward="other")
    both = [half_right, first_errors]
    with pytest.raises(ValueError, match="returns a token count, not a reward: set its weight"):
        make(tmp_path, unknown, text_model_path, both, method="vppo", first_error_reward="first_errors")
    turned = OWN | {"reward_weights": [0.0, 1.0]}
    with pytest.raises(ValueError, match="cannot decide correctness too"):
        make(tmp_path, unknown, text_model_path, [first_errors, half_right], method="vppo", **turned)
