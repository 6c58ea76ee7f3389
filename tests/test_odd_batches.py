"""Batches and numbers that are seldom met: nothing said, all cut, no answer, teachers without a number, bfloat16."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import AutoTokenizer

import cepo.methods.method
import cepo.trainer.cepo_trainer
from cepo import CEPOTrainer, References, method_options, policy_path
from cepo.methods import METHODS, CreditInputs
from cepo.scoring.pipeline import Pipeline
from tests.reference import loops
from tests.support.methods import distills, needed_by
from tests.support.training import half_right, logged, loss_inputs, train, weights_of, wrong_answers

__all__ = ["loss_inputs"]  # a fixture

READING = [name for name, method in METHODS.items() if method.needs_teachers]
# All but the oracle, which knows the figures task alone.
TRAINED = [name for name in METHODS if name != "oracle"]


def third(completions, **kwargs):
    return [3.0] * len(completions)


def step(tmp_path, text_figures, text_model_path, method, reward=half_right, **options):
    """One step of the real trainer."""
    options |= dict.fromkeys(needed_by(method), text_model_path)
    if method == "vppo":
        reward, options = [reward, third], options | {"first_error_reward": "third", "reward_weights": [1.0, 0.0]}
    return train(tmp_path, text_figures, text_model_path, reward, method=method, **({"max_steps": 1} | options))


def is_sound(trainer):
    """Finite weights, loss and gradient, and no step that had to be skipped."""
    assert all(torch.isfinite(weight).all() for weight in weights_of(trainer).values())
    for name in ("loss", "grad_norm"):
        assert all(math.isfinite(value) for value in logged(trainer, name))
    assert logged(trainer, "cepo/skipped_steps") == [0.0] * trainer.state.global_step
    return True


# Teachers without a number --------------------------------------------------------------------------------------------

odd_logps = st.one_of(st.floats(-30, 0), st.sampled_from([-math.inf, math.nan, math.inf, -1e30]))


@st.composite
def readings(draw):
    """(advantages (B,), log-probs (3, B, T), mask (B, T)) in float64, with holes."""
    b, t = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    table = st.lists(st.lists(odd_logps, min_size=t, max_size=t), min_size=b, max_size=b)
    mask = draw(st.lists(st.lists(st.booleans(), min_size=t, max_size=t), min_size=b, max_size=b))
    advantages = draw(st.lists(st.sampled_from([-1.5, 0.0, 0.5, 2.0]), min_size=b, max_size=b))
    logps = torch.tensor(draw(st.lists(table, min_size=3, max_size=3)), dtype=torch.float64)
    return torch.tensor(advantages, dtype=torch.float64), logps, torch.tensor(mask)


def placed(method, advantages, logps, mask):
    options = method_options(method, **_needed(method))
    present = torch.ones(logps.shape[:2], dtype=torch.bool)
    found = METHODS[method].evidence(logps, present)
    inputs = CreditInputs(advantages, found.values, mask, found.scored, advantages.sign(), found.unscorable)
    return options, found, options.method_spec.token_advantages(inputs, options, 0)


def _needed(method):
    return {"divergence": "sampled"} if distills(method) else needed_by(method)


@pytest.mark.parametrize("method", READING)
@given(readings())
@settings(max_examples=60)
def test_token_advantages_are_finite_whatever_teachers_say(method, batch):
    """A token that a teacher gives no finite number has no evidence, and is counted."""
    advantages, logps, mask = batch
    logps = logps[: 3 if method == "cscr" else 2]
    _, found, result = placed(method, advantages, logps, mask)
    assert found.values.isfinite().all()
    assert result.in_loss.isfinite().all()
    assert (result.advantages[~mask] == 0).all()
    without = ~logps.isfinite().all(0)
    assert torch.equal(found.unscorable, without)
    if method != "cscr":  # which takes the larger of two
        assert (found.values[without] == 0).all()


@pytest.mark.parametrize("method", ["cepo", "rlsd", "rlrt"])
@given(readings())
@settings(max_examples=60)
def test_they_are_what_plain_loops_say(method, batch):
    """In float64, over Python lists: the advantage itself where there is no evidence."""
    advantages, logps, mask = batch
    _, _, result = placed(method, advantages, logps[:2], mask)
    deltas = loops.evidence(logps[0].tolist(), logps[1].tolist())
    if method == "rlrt":  # reversed, on right rollouts alone
        pairs = zip(advantages.tolist(), deltas, strict=True)
        deltas = [[-delta * (advantage > 0) for delta in row] for advantage, row in pairs]
    own = method_options(method)
    expected = loops.token_advantages(
        advantages.tolist(), deltas, mask.tolist(), own.coefficient_at(0), own.evidence_clip
    )
    assert_close(result.advantages, torch.tensor(expected, dtype=torch.float64))
    plain = mask & ~logps[:2].isfinite().all(0)
    assert torch.equal(result.advantages[plain], advantages.unsqueeze(-1).expand_as(mask)[plain])


@given(readings(), st.lists(st.booleans(), min_size=3, max_size=3))
@settings(max_examples=60)
def test_one_of_several_teachers_without_a_number(batch, kept):
    """A wrong answer that gives no chance at all lowers the mean; one that says nothing takes the evidence away."""
    _, logps, _ = batch
    present = torch.tensor(kept).unsqueeze(-1).expand(logps.shape[:2])
    found = cepo.methods.stages.contrast(torch.cat([logps[:1], logps]), torch.cat([present[:1] | True, present]))
    assert found.values.isfinite().all()
    for row in range(logps.shape[1]):
        for token in range(logps.shape[2]):
            told = [logps[k, row, token].item() for k in range(3) if kept[k]]
            positive = logps[0, row, token].item()
            mean = sum(map(math.exp, told)) / len(told) if told and math.inf not in told else math.nan
            if math.isfinite(positive) and mean > 0:
                assert found.values[row, token].item() == pytest.approx(positive - math.log(mean), rel=1e-6, abs=1e-6)
            elif not any(-800 > number > -math.inf for number in told):  # a float has no such chances, its log does
                assert found.values[row, token] == 0
                assert found.unscorable[row, token]


@pytest.mark.parametrize("method", READING)
def test_a_teacher_without_a_number_in_training(
    tmp_path, text_figures, text_model_path, monkeypatch, method, loss_inputs
):
    """NaN and minus infinity for a third of what teachers read: counted, and the step is sound."""
    wrong_answers(monkeypatch)
    score = Pipeline.score

    def spoilt(*args):
        found = [{context: logps.clone() for context, logps in one.items()} for one in score(*args)]
        for one in filter(None, found):
            first, *_, last = one.values()
            first[::3], last[1::6] = -math.inf, math.nan
        return found

    monkeypatch.setattr(Pipeline, "score", spoilt)
    options = {"divergence": "sampled"} if distills(method) else {}
    trainer = step(tmp_path, text_figures, text_model_path, method, skip_zero_advantage=False, **options)
    assert is_sound(trainer)
    assert logged(trainer, "cepo/rows_scored")[0] > 0
    # Of 16 tokens, 6 and 3, two of the latter among the former or not.
    assert 0.3 < logged(trainer, "cepo/evidence/unscorable")[0] < 0.6
    batch = loss_inputs.pop()
    assert batch["advantages"].isfinite().all()


@pytest.mark.parametrize("method", ["opsd", "sdpo"])
def test_a_distillation_whose_teacher_has_no_numbers_skips_the_step(
    tmp_path, text_figures, text_model_path, monkeypatch, method
):
    states = cepo.trainer.cepo_trainer.teacher_states

    def spoilt(*args, **kwargs):
        found = states(*args, **kwargs)
        found.hidden[0] = math.nan
        return found

    monkeypatch.setattr(cepo.trainer.cepo_trainer, "teacher_states", spoilt)
    trainer = step(tmp_path, text_figures, text_model_path, method)
    assert logged(trainer, "cepo/skipped_steps") == [1.0]
    assert all(torch.isfinite(weight).all() for weight in weights_of(trainer).values())


# Completions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", TRAINED)
def test_nothing_but_the_end(tmp_path, text_figures, text_model_path, monkeypatch, method):
    """Every completion is the end token alone, by the sampler's own options."""
    spy = Spy(cepo.trainer.cepo_trainer.in_loss)
    monkeypatch.setattr(cepo.trainer.cepo_trainer, "in_loss", spy)
    end = {"sequence_bias": [[[_end_of(text_model_path)], 100.0]]}
    options = {"max_completion_length": 1, "generation_kwargs": end}
    trainer = step(tmp_path, text_figures, text_model_path, method, **options)
    assert is_sound(trainer)
    assert logged(trainer, "completions/mean_terminated_length") == [1.0]
    if not distills(method):
        (batch,) = spy.seen
        assert batch["completion_ids"].unique().tolist() == [_end_of(text_model_path)]


class Spy:
    """A function that notes what it gives."""

    def __init__(self, function):
        self.function, self.seen = function, []

    def __call__(self, *args):
        self.seen.append(found := self.function(*args))
        return found


def _end_of(path):
    return AutoTokenizer.from_pretrained(path).eos_token_id


@pytest.mark.parametrize(("method", "skips"), [*((method, None) for method in TRAINED), ("cepo", False)])
def test_all_cut(tmp_path, text_figures, text_model_path, method, skips):
    """None is trained on, and none is read; the policy stays as it is."""
    options = {"mask_truncated_completions": True, "max_completion_length": 2, "optim": "sgd"}
    options |= {"generation_kwargs": {"suppress_tokens": [_end_of(text_model_path)]}, "skip_zero_advantage": skips}
    trainer = step(tmp_path, text_figures, text_model_path, method, **options)
    assert is_sound(trainer)
    assert logged(trainer, "completions/clipped_ratio") == [1.0]
    assert logged(trainer, "cepo/rows_scored") == [0.0]
    assert logged(trainer, "grad_norm") == [0.0]


@pytest.mark.parametrize("method", TRAINED)
def test_no_answer_can_be_read(tmp_path, text_figures, text_model_path, monkeypatch, method):
    """Nor is anything right: what a method does without stands in cepo/fallback."""
    monkeypatch.setattr(cepo.trainer.cepo_trainer, "final_answer", lambda text, extractor: None)

    def wrong(completions, **kwargs):
        return [-0.1 * place for place in range(len(completions))]

    trainer = step(tmp_path, text_figures, text_model_path, method, wrong)
    assert is_sound(trainer)
    scored = logged(trainer, "cepo/rows_scored")[0]
    fallbacks = {
        name: logged(trainer, f"cepo/fallback/{name}") for name in ("no_incorrect_answer", "no_correct_rollout")
    }
    if method in ("cepo", "cepo_additive", "rlsd", "sdar", "cscr", "pbsd", "opsd"):  # against P_S, or with the solution
        assert scored == 1.0
        assert fallbacks["no_incorrect_answer"] == [1.0 if method in ("cepo", "cepo_additive") else 0.0]
    elif method == "distilled_rl":  # where A > 0
        assert scored == 0.5
    else:
        assert scored == 0.0
    if method in ("rlcsd", "sdpo"):
        assert fallbacks["no_correct_rollout"] == [1.0]


# bfloat16 -------------------------------------------------------------------------------------------------------------

HALF = {"weights": {"model_init_kwargs": {"dtype": "bfloat16"}}, "autocast": {"bf16": True, "use_cpu": True}}


@pytest.mark.parametrize(
    ("half", "method"), [*(("weights", method) for method in TRAINED), ("autocast", "cepo"), ("autocast", "opsd")]
)
def test_a_step_in_bfloat16(tmp_path, text_figures, text_model_path, monkeypatch, method, half, loss_inputs):
    wrong_answers(monkeypatch)
    trainer = step(tmp_path, text_figures, text_model_path, method, **HALF[half])
    assert is_sound(trainer)
    dtypes = {parameter.dtype for parameter in trainer.model.parameters()}
    assert dtypes == {torch.bfloat16 if half == "weights" else torch.float32}
    for batch in loss_inputs:
        assert batch["advantages"].isfinite().all()
        assert batch["advantages"].dtype == torch.float32
    if METHODS[method].needs_teachers:
        assert logged(trainer, "cepo/evidence/unscorable") in ([0.0], [])


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("shared", ["always", "never"])
def test_equal_contexts_have_no_evidence_in_bfloat16(
    tmp_path, text_figures, text_model_path, monkeypatch, half, shared, loss_inputs
):
    """Exactly: r+ and r- are told in the same words, so that every token keeps its rollout's advantage to the bit."""
    monkeypatch.setattr(
        cepo.methods.stages,
        "choose_references",
        lambda attempts, solution, **_: [References(solution, (solution,))] * len(attempts),
    )
    trainer = step(tmp_path, text_figures, text_model_path, "cepo", shared_prompt=shared, **HALF[half])
    assert logged(trainer, "cepo/rows_scored") == [1.0]
    (batch,) = loss_inputs
    assert (batch["evidence"] == 0).all()
    for row, mask in zip(batch["advantages"], batch["completion_mask"].bool(), strict=True):
        assert row[mask].unique().numel() == 1


@pytest.mark.slow
def test_evidence_in_bfloat16_is_float32s_but_for_rounding(tmp_path, figures, monkeypatch, loss_inputs):
    """Of the shipped policy, on the same rollouts. docs/training.md has the tolerance."""
    sample, rollouts = CEPOTrainer._generate_single_turn, []

    def recorded(self, *args, **kwargs):
        if not rollouts:
            rollouts.append(sample(self, *args, **kwargs))
        torch.manual_seed(0)  # of the order of rows, which comes next
        return rollouts[0]

    monkeypatch.setattr(CEPOTrainer, "_generate_single_turn", recorded)
    options = {"method": "rlsd", "max_steps": 1, "max_completion_length": 64, "skip_zero_advantage": False}
    for half in ({}, *HALF.values()):
        assert is_sound(train(tmp_path, figures, policy_path(), half_right, **options, **half))
    exact, *rough = loss_inputs
    mask = exact["completion_mask"].bool()
    evidence = exact["evidence"][mask]
    assert evidence.abs().max() > 1
    for batch in rough:
        assert torch.equal(batch["completion_ids"], exact["completion_ids"])
        apart = (batch["evidence"][mask] - evidence).abs()
        assert 0 < apart.max() < 0.3
        assert apart.quantile(0.99) < 0.1
        clear = evidence.abs() > 0.3
        assert torch.equal(batch["evidence"][mask][clear].sign(), evidence[clear].sign())
        assert_close(batch["advantages"], exact["advantages"], atol=0.1, rtol=0)
