"""Rare batches and numbers: empty or truncated completions, no answers, non-finite log-probs, bfloat16."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import AutoTokenizer

import cepo.methods.method
import cepo.trainer.cepo_trainer
import cepo.trainer.distillation
from cepo import CEPOTrainer, References, method_options, policy_path
from cepo.methods import METHODS, CreditInputs
from cepo.scoring.pipeline import Pipeline
from tests.reference import loops
from tests.support.methods import distills, needed_by
from tests.support.training import half_right, is_sound, logged, train, weights_of, wrong_answers

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


# Non-finite log-probs of teachers -------------------------------------------------------------------------------------

odd_logps = st.one_of(st.floats(-30, 0), st.sampled_from([-math.inf, math.nan, math.inf, -1e30]))


@st.composite
def log_probs(draw):
    """(advantages (B,), log-probs (3, B, T), mask (B, T)) in float64, some not finite."""
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
@given(log_probs())
@settings(max_examples=60)
def test_token_advantages_are_finite(method, batch):
    """A token without a finite log-prob has no evidence, and is counted."""
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
@given(log_probs())
@settings(max_examples=60)
def test_token_advantages_against_plain_loops(method, batch):
    """In float64; the rollout's advantage without evidence."""
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


@given(log_probs(), st.lists(st.booleans(), min_size=3, max_size=3))
@settings(max_examples=60)
def test_one_of_several_negatives_is_not_finite(batch, kept):
    """Minus infinity lowers the mean probability; NaN removes the evidence."""
    _, logps, _ = batch
    present = torch.tensor(kept).unsqueeze(-1).expand(logps.shape[:2])
    found = cepo.methods.stages.contrast(torch.cat([logps[:1], logps]), torch.cat([present[:1] | True, present]))
    assert found.values.isfinite().all()
    for row in range(logps.shape[1]):
        for token in range(logps.shape[2]):
            negatives = [logps[k, row, token].item() for k in range(3) if kept[k]]
            positive = logps[0, row, token].item()
            mean = (
                sum(map(math.exp, negatives)) / len(negatives) if negatives and math.inf not in negatives else math.nan
            )
            if math.isfinite(positive) and mean > 0:
                assert found.values[row, token].item() == pytest.approx(positive - math.log(mean), rel=1e-6, abs=1e-6)
            elif not any(-800 > number > -math.inf for number in negatives):  # a probability underflows below that
                assert found.values[row, token] == 0
                assert found.unscorable[row, token]


@pytest.mark.parametrize("method", READING)
def test_non_finite_log_probs_in_training(tmp_path, text_figures, text_model_path, monkeypatch, method, loss_inputs):
    """A third of the log-probs is NaN or minus infinity: counted, and the step is finite."""
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
def test_a_divergence_from_nan_skips_the_step(tmp_path, text_figures, text_model_path, monkeypatch, method):
    states = cepo.trainer.distillation.teacher_states

    def spoilt(*args, **kwargs):
        found = states(*args, **kwargs)
        found.hidden[0] = math.nan
        return found

    monkeypatch.setattr(cepo.trainer.distillation, "teacher_states", spoilt)
    trainer = step(tmp_path, text_figures, text_model_path, method)
    assert logged(trainer, "cepo/skipped_steps") == [1.0]
    assert all(torch.isfinite(weight).all() for weight in weights_of(trainer).values())


# Completions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", TRAINED)
def test_completions_of_the_end_token_alone(tmp_path, text_figures, text_model_path, monkeypatch, method):
    spy = Spy(cepo.trainer.cepo_trainer.with_token_advantages)
    monkeypatch.setattr(cepo.trainer.cepo_trainer, "with_token_advantages", spy)
    end = {"sequence_bias": [[[_end_of(text_model_path)], 100.0]]}
    options = {"max_completion_length": 1, "generation_kwargs": end}
    trainer = step(tmp_path, text_figures, text_model_path, method, **options)
    assert is_sound(trainer)
    assert logged(trainer, "completions/mean_terminated_length") == [1.0]
    if not distills(method):
        (batch,) = spy.seen
        assert batch["completion_ids"].unique().tolist() == [_end_of(text_model_path)]


class Spy:
    """A function that records its results."""

    def __init__(self, function):
        self.function, self.seen = function, []

    def __call__(self, *args):
        self.seen.append(found := self.function(*args))
        return found


def _end_of(path):
    return AutoTokenizer.from_pretrained(path).eos_token_id


@pytest.mark.parametrize(("method", "skips"), [*((method, None) for method in TRAINED), ("cepo", False)])
def test_truncated_completions_are_masked(tmp_path, text_figures, text_model_path, method, skips):
    """No rollout is trained on or scored; the policy does not change."""
    options = {"mask_truncated_completions": True, "max_completion_length": 2, "optim": "sgd"}
    options |= {"generation_kwargs": {"suppress_tokens": [_end_of(text_model_path)]}, "skip_zero_advantage": skips}
    trainer = step(tmp_path, text_figures, text_model_path, method, **options)
    assert is_sound(trainer)
    assert logged(trainer, "completions/clipped_ratio") == [1.0]
    assert logged(trainer, "cepo/rows_scored") == [0.0]
    assert logged(trainer, "grad_norm") == [0.0]


@pytest.mark.parametrize("method", TRAINED)
def test_no_answer_is_extracted(tmp_path, text_figures, text_model_path, monkeypatch, method):
    """Nor is any rollout correct: cepo/fallback counts the missing references."""
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
    """Bit-identical log-probs, so that every token keeps its rollout's advantage."""
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


@pytest.mark.integration
def test_evidence_in_bfloat16_is_that_of_float32_to_rounding(tmp_path, figures, monkeypatch, loss_inputs):
    """The shipped policy on the same rollouts; docs/training.md has the tolerance."""
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
