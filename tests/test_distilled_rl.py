"""Distilled RL: another model weights the tokens of rollouts with A > 0."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from cepo import cli, method_options, policy_path
from cepo.methods import METHODS, OTHER_MODEL, STUDENT
from tests.support.methods import check_a_real_step, inputs_of, placed_by
from tests.support.training import letters, logged, loss_inputs, make, task
from tests.support.values import advantage_values

from .reference import loops

__all__ = ["loss_inputs", "task"]  # fixtures
TEACHER = {"teacher_model_name_or_path": "somewhere"}


def test_by_hand():
    """Ratios 2, 1/2 and 100, clipped to 3: geometric mean 3^(1/3)."""
    logps = torch.tensor([[[2.0, 0.5, 100.0]], [[1.0, 1.0, 1.0]]], dtype=torch.float64).log()
    found = METHODS["distilled_rl"].evidence(logps, torch.ones(2, 1, dtype=torch.bool))
    evidence = found.values.tolist() * 2
    placed = placed_by("distilled_rl", inputs_of(evidence, [2.0, -1.0], scored=[True, False]), **TEACHER)
    mean = 3 ** (1 / 3)
    expected = [[4 / mean, 1 / mean, 6 / mean], [-1.0, -1.0, -1.0]]
    assert_close(placed.advantages, torch.tensor(expected, dtype=torch.float64))
    assert placed.at_bound.tolist() == [[False, False, True], [False] * 3]
    plain = placed_by("distilled_rl", inputs_of(evidence, [2.0, -1.0]), normalize_ratios=False, **TEACHER)
    assert_close(plain.advantages[0], torch.tensor([4.0, 1.0, 6.0], dtype=torch.float64))


def test_unscorable_tokens_keep_their_advantage():
    inputs = inputs_of([[0.0, -5.0, -5.0]], [2.0], unscorable=[[True, False, False]])
    placed = placed_by("distilled_rl", inputs, **TEACHER)
    assert_close(placed.advantages, torch.full((1, 3), 2.0, dtype=torch.float64))


logps = st.lists(st.floats(-200, 0), min_size=4, max_size=4)
rows = st.lists(
    st.tuples(advantage_values, logps, logps, st.lists(st.booleans(), min_size=4, max_size=4)), min_size=1, max_size=3
)


@given(rows, st.floats(1.01, 9), st.booleans(), st.sampled_from(["positive", "negative", "all"]))
def test_agrees_with_plain_loops_and_keeps_the_sign(rows, ratio_clip, normalize, rollouts):
    advantages, teacher, student, mask = map(list, zip(*rows, strict=True))
    logps = torch.tensor([teacher, student], dtype=torch.float64)
    found = METHODS["distilled_rl"].evidence(logps, torch.ones(2, len(rows), dtype=torch.bool))
    inputs = inputs_of(found.values.tolist(), advantages, mask=mask)
    own = {"ratio_clip": ratio_clip, "normalize_ratios": normalize, "reweighted_rollouts": rollouts}
    placed = placed_by("distilled_rl", inputs, **own, **TEACHER)
    expected = loops.distilled_rl(advantages, teacher, student, mask, ratio_clip, normalize, rollouts)
    assert_close(placed.advantages, torch.tensor(expected, dtype=torch.float64))
    advantage = inputs.advantages.unsqueeze(-1)
    assert (placed.advantages * advantage >= 0).all()
    assert (placed.advantages.abs() <= ratio_clip**2 * advantage.abs() * (1 + 1e-9)).all()


def test_only_weighted_rollouts_are_scored():
    advantages, verdicts = torch.tensor([1.0, -1.0, 0.0]), torch.zeros(3)

    def scored(**own):
        options = method_options("distilled_rl", **own, **TEACHER)
        return METHODS["distilled_rl"].rollout_filter(advantages, verdicts, options).tolist()

    assert scored() == [True, False, False]
    assert scored(reweighted_rollouts="negative") == [False, True, False]
    assert scored(reweighted_rollouts="all") == [True, True, False]


def test_the_other_model_is_required():
    with pytest.raises(ValueError, match="needs teacher_model_name_or_path"):
        method_options("distilled_rl")
    options = method_options("distilled_rl", **TEACHER)
    (found,) = METHODS["distilled_rl"].references([None], "7", options, None)
    assert METHODS["distilled_rl"].contexts(found, options) == [OTHER_MODEL, STUDENT]


@pytest.fixture
def stronger(tmp_path, task):
    """A model like the policy, with other weights, and its processor."""
    _, path = task
    folder = tmp_path / "stronger"
    if "policy" in path:
        model, processor = AutoModelForImageTextToText.from_pretrained(path), AutoProcessor.from_pretrained(path)
    else:
        from transformers import AutoModelForCausalLM

        model, processor = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_a_real_step(tmp_path, task, stronger, loss_inputs, monkeypatch):
    """The evidence is that of log-probs of the other model, loaded by itself."""
    options = {"teacher_model_name_or_path": stronger}
    trainer, batch = check_a_real_step(tmp_path, task, loss_inputs, monkeypatch, "distilled_rl", **options)
    assert logged(trainer, "cepo/rows_scored") == [0.5]
    better, mask = batch["verdicts"] > 0, batch["completion_mask"].bool()
    for row, kept in zip(batch["advantages"][~better], mask[~better], strict=True):
        assert row[kept].unique().numel() == 1
    other = type(trainer._teachers.inner()).from_pretrained(stronger).eval()
    own = type(other).from_pretrained(task[1]).eval()
    inputs = {
        "input_ids": torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        "attention_mask": torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
    }
    inputs |= {n: batch[n] for n in ("pixel_values", "image_grid_thw", "mm_token_type_ids") if n in batch}
    width = batch["completion_ids"].shape[1]

    def log_probs(model):
        with torch.no_grad():
            logits = type(model).forward(model, **inputs).logits[:, -width - 1 : -1]
        return logits.log_softmax(-1).gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1)

    expected = log_probs(other) - log_probs(own)
    counted = mask & better.unsqueeze(-1)
    assert_close(batch["evidence"][counted], expected[counted], atol=2e-4, rtol=1e-3)
    assert expected[counted].abs().max() > 0.05


def test_the_policy_as_its_own_teacher_is_grpo(tmp_path, task, loss_inputs, monkeypatch):
    from tests.support.training import half_right, train

    dataset, model = task
    options = {"method": "distilled_rl", "max_steps": 1, "skip_zero_advantage": False}
    train(tmp_path, dataset, model, half_right, teacher_model_name_or_path=model, **options)
    (batch,) = loss_inputs
    assert (batch["evidence"].abs() < 2e-4).all()
    for row, kept in zip(batch["advantages"], batch["completion_mask"].bool(), strict=True):
        assert row[kept].max() - row[kept].min() < 1e-3


def test_another_vocabulary_is_refused(tmp_path, text_figures, text_model_path):
    folder = tmp_path / "other"
    tokenizer = AutoTokenizer.from_pretrained(text_model_path)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(folder)
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(text_model_path).save_pretrained(folder)
    options = {"method": "distilled_rl", "teacher_model_name_or_path": str(folder)}
    with pytest.raises(ValueError, match=r"teacher_model_name_or_path.*another vocabulary.*1 entries differ"):
        make(tmp_path, text_figures, text_model_path, letters, **options)
    with pytest.raises(ValueError, match=r"teacher_model_name_or_path: there is no such folder: \./nowhere"):
        make(tmp_path, text_figures, text_model_path, letters, **options | {"teacher_model_name_or_path": "./nowhere"})


def test_explain_loads_the_other_model(tmp_path, capsys):
    arguments = ["explain", "--index=1", "--num_generations=4", "--output_dir", str(tmp_path), "--show", "distilled_rl"]
    assert cli.main(arguments) == 2
    assert "needs --teacher_model_name_or_path" in capsys.readouterr().err
    assert cli.main([*arguments, "--teacher_model_name_or_path", policy_path()]) == 0
    assert '"name":"distilled_rl"' in (tmp_path / "explain.html").read_text()
