"""The method as pure functions: every statement of the theory, worked cases, and an independent implementation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from cepo.credit import (
    evidence,
    evidence_coefficient,
    evidence_weights,
    mean_probability,
    token_advantages,
    unscorable,
)
from tests.support.values import advantage_values

from .reference import loops

logps = st.floats(-60, 0)
clips = st.floats(0.01, 0.99)
coefficients = st.floats(0, 1)


@st.composite
def batches(draw):
    """(advantages (B,), positive (B, T), negative (B, T), student (B, T), mask (B, T)) in float64."""
    b, t = draw(st.integers(1, 4)), draw(st.integers(1, 6))

    def table(values):
        return draw(st.lists(st.lists(values, min_size=t, max_size=t), min_size=b, max_size=b))

    advantages = draw(st.lists(advantage_values, min_size=b, max_size=b))
    tables = [torch.tensor(table(logps), dtype=torch.float64) for _ in range(3)]
    return torch.tensor(advantages, dtype=torch.float64), *tables, torch.tensor(table(st.booleans()))


@given(batches(), coefficients, clips)
def test_agrees_with_plain_loops(batch, coefficient, clip):
    advantages, positive, negative, _, mask = batch
    delta = evidence(positive, negative)
    expected_delta = loops.evidence(positive.tolist(), negative.tolist())
    assert_close(delta.tolist(), expected_delta)
    expected = loops.token_advantages(advantages.tolist(), expected_delta, mask.tolist(), coefficient, clip)
    actual = token_advantages(advantages, delta, mask, coefficient=coefficient, clip=clip)
    assert_close(actual, torch.tensor(expected, dtype=torch.float64))


@given(batches(), coefficients, clips)
def test_direction_anchoring(batch, coefficient, clip):
    advantages, positive, negative, _, mask = batch
    result = token_advantages(advantages, evidence(positive, negative), mask, coefficient=coefficient, clip=clip)
    signs = advantages.sign().unsqueeze(-1).expand_as(result)
    assert torch.equal(result.sign()[mask], signs[mask])


@given(batches(), coefficients, clips)
def test_boundedness(batch, coefficient, clip):
    advantages, positive, negative, _, mask = batch
    result = token_advantages(advantages, evidence(positive, negative), mask, coefficient=coefficient, clip=clip)
    moved = (result - advantages.unsqueeze(-1)).abs()[mask]
    allowed = (coefficient * clip * advantages.abs()).unsqueeze(-1).expand_as(result)[mask]
    assert (moved <= allowed * (1 + 1e-9) + 1e-12).all()


@given(batches(), clips)
def test_grpo_is_contained(batch, clip):
    """lambda = 0, or r+ = r-, gives the GRPO advantage exactly, not nearly."""
    advantages, positive, negative, _, mask = batch
    uniform = advantages.unsqueeze(-1).expand_as(positive) * mask
    without = token_advantages(advantages, evidence(positive, negative), mask, coefficient=0.0, clip=clip)
    same_answer = token_advantages(advantages, evidence(positive, positive), mask, coefficient=0.5, clip=clip)
    assert torch.equal(without, uniform)
    assert torch.equal(same_answer, uniform)


@given(batches(), clips)
def test_rlsd_is_contained(batch, clip):
    """With P_T- = P_S the evidence is log P_T+ - log P_S, and the weight (P_T+ / P_S)^sign(A), RLSD's."""
    advantages, positive, _, student, _ = batch
    weights = evidence_weights(evidence(positive, student), advantages, clip=clip)
    for b, advantage in enumerate(advantages.tolist()):
        for t in range(positive.shape[1]):
            ratio = math.exp(positive[b, t].item() - student[b, t].item())
            power = (advantage > 0) - (advantage < 0)
            assert_close(weights[b, t].item(), min(max(ratio**power, 1 - clip), 1 + clip))


@given(st.floats(-8, 0), st.floats(-8, 0), st.floats(-8, 0), st.sampled_from([1.0, -1.0]))
def test_sharpening(positive, negative, student, sign):
    """On a correct rollout w_CEPO > w_RLSD if and only if P_T- < P_S; mirrored on a wrong one."""
    advantages = torch.tensor([sign], dtype=torch.float64)

    def unclipped(other):
        delta = evidence(torch.tensor([[positive]], dtype=torch.float64), torch.tensor([[other]], dtype=torch.float64))
        scale = 1e-3  # small evidence stays inside the clip, and a common factor keeps the order
        return evidence_weights(delta * scale, advantages, clip=0.5).item()

    cepo, rlsd = unclipped(negative), unclipped(student)
    if abs(negative - student) > 1e-6:
        assert (cepo > rlsd) == ((negative < student) if sign > 0 else (negative > student))


def test_filler_has_weight_one():
    filler = torch.full((2, 3), -1.7)
    weights = evidence_weights(evidence(filler, filler), torch.tensor([0.8, -0.8]), clip=0.5)
    assert torch.equal(weights, torch.ones(2, 3))


def test_three_tokens_by_hand():
    """P_T+ = (0.9, 0.5, 0.2), P_T- = (0.3, 0.5, 0.8): ratios 3, 1, 1/4; clip 0.5, lambda 0.5."""
    positive = torch.tensor([[0.9, 0.5, 0.2]] * 2, dtype=torch.float64).log()
    negative = torch.tensor([[0.3, 0.5, 0.8]] * 2, dtype=torch.float64).log()
    delta = evidence(positive, negative)
    assert_close(delta[0], torch.tensor([math.log(3), 0.0, -math.log(4)], dtype=torch.float64))
    advantages = torch.tensor([2.0, -1.0], dtype=torch.float64)
    weights = evidence_weights(delta, advantages, clip=0.5)
    assert_close(weights, torch.tensor([[1.5, 1.0, 0.5], [0.5, 1.0, 1.5]], dtype=torch.float64))
    mask = torch.tensor([[True, True, True], [True, True, False]])
    result = token_advantages(advantages, delta, mask, coefficient=0.5, clip=0.5)
    assert_close(result, torch.tensor([[2.5, 2.0, 1.5], [-0.75, -1.0, 0.0]], dtype=torch.float64))


def test_small_ratios_are_not_clipped_by_hand():
    """P_T+/P_T- = 1.2 on a right and on a wrong rollout: weights 1.2 and 1/1.2."""
    delta = torch.tensor([[math.log(1.2)], [math.log(1.2)]], dtype=torch.float64)
    weights = evidence_weights(delta, torch.tensor([1.0, -1.0], dtype=torch.float64), clip=0.5)
    assert_close(weights, torch.tensor([[1.2], [1 / 1.2]], dtype=torch.float64))


@pytest.mark.parametrize("bad", [-math.inf, math.inf, math.nan])
@pytest.mark.parametrize("side", ["positive", "negative", "both"])
def test_a_token_that_cannot_be_scored_carries_no_evidence(bad, side):
    positive, negative = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-2.0, -2.0]])
    if side in ("positive", "both"):
        positive[0, 0] = bad
    if side in ("negative", "both"):
        negative[0, 0] = bad
    assert evidence(positive, negative).tolist() == [[0.0, 1.0]]
    assert unscorable(positive, negative).tolist() == [[True, False]]


@pytest.mark.parametrize("delta", [1e30, -1e30, 3e38, 1000.0, -1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_do_not_overflow(delta, dtype):
    weights = evidence_weights(torch.tensor([[delta]], dtype=dtype), torch.tensor([1.0], dtype=dtype), clip=0.25)
    assert weights.item() == (1.25 if delta > 0 else 0.75)


def test_values_outside_the_mask_have_no_effect():
    delta = torch.tensor([[0.1, math.nan], [math.inf, 0.2]])
    mask = torch.tensor([[True, False], [False, True]])
    result = token_advantages(torch.tensor([1.0, 1.0]), delta, mask, coefficient=1.0, clip=0.5)
    assert result[0, 1] == 0
    assert result[1, 0] == 0
    assert result.isfinite().all()


def test_results_are_detached():
    """The teachers enter as constants: no gradient reaches their log-probs."""
    positive, negative = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    advantages = torch.tensor([1.0, -1.0], requires_grad=True)
    delta = evidence(positive, negative)
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert not delta.requires_grad
    assert not token_advantages(advantages, delta, mask, coefficient=0.5, clip=0.5).requires_grad


@settings(max_examples=30)
@given(st.integers(0, 2**31))
def test_the_gradient_leaks_no_answer(seed):
    """The policy gradient depends on the teachers at the sampled tokens only: whatever they say of other tokens, it is
    -A_t (onehot(y_t) - pi), not a sum over the vocabulary weighted by P_T."""
    generator = torch.Generator().manual_seed(seed)
    t, v = 4, 5
    tokens = torch.randint(v, (1, t), generator=generator)
    teachers = torch.randn(2, 1, t, v, generator=generator, dtype=torch.float64).log_softmax(-1)
    logits = torch.randn(1, t, v, generator=generator, dtype=torch.float64).requires_grad_()

    def gradient(teacher_logps):
        at_tokens = teacher_logps.gather(-1, tokens.expand(2, 1, t).unsqueeze(-1)).squeeze(-1)
        per_token = token_advantages(
            torch.tensor([1.3], dtype=torch.float64),
            evidence(at_tokens[0], at_tokens[1]),
            torch.ones(1, t, dtype=torch.bool),
            coefficient=0.5,
            clip=0.5,
        )
        student = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        (result,) = torch.autograd.grad(-(per_token * (student - student.detach()).exp()).sum(), logits)
        return result, per_token

    actual, per_token = gradient(teachers)
    one_hot = torch.nn.functional.one_hot(tokens, v).to(torch.float64)
    assert_close(actual, -per_token.unsqueeze(-1) * (one_hot - logits.softmax(-1)).detach())

    # Shuffle the teachers' mass among the tokens that were not sampled: the gradient stays the same to the bit.
    shuffled = teachers.clone()
    for position in range(t):
        others = [token for token in range(v) if token != tokens[0, position]]
        order = torch.randperm(len(others), generator=generator)
        shuffled[:, 0, position, others] = teachers[:, 0, position, [others[i] for i in order]]
    assert torch.equal(gradient(shuffled)[0], actual)


@st.composite
def teacher_sets(draw):
    k, b, t = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    values = draw(
        st.lists(
            st.lists(st.lists(st.floats(-30, 0), min_size=t, max_size=t), min_size=b, max_size=b),
            min_size=k,
            max_size=k,
        )
    )
    present = draw(st.lists(st.lists(st.booleans(), min_size=b, max_size=b), min_size=k, max_size=k))
    return torch.tensor(values, dtype=torch.float64), torch.tensor(present)


@given(teacher_sets())
def test_mean_probability_agrees_with_plain_loops(teachers):
    logp, present = teachers
    expected = torch.tensor(loops.mean_probability(logp.tolist(), present.tolist()), dtype=torch.float64)
    assert_close(mean_probability(logp, present), expected, equal_nan=True)


def test_mean_probability_ignores_absent_teachers():
    logp = torch.tensor([[[math.log(0.2)]], [[math.nan]], [[math.log(0.6)]]], dtype=torch.float64)
    present = torch.tensor([[True], [False], [True]])
    assert_close(mean_probability(logp, present).exp(), torch.tensor([[0.4]], dtype=torch.float64))


@given(st.integers(0, 60), st.floats(0, 1), st.integers(0, 40), st.sampled_from(["linear", "cosine", "constant"]))
def test_coefficient_agrees_with_plain_loops(step, initial, steps, schedule):
    actual = evidence_coefficient(step, initial=initial, steps=steps, schedule=schedule)
    assert actual == pytest.approx(loops.coefficient(step, initial, steps, schedule))
    assert 0 <= actual <= initial


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_coefficient_starts_at_its_initial_value_and_ends_at_zero(schedule):
    assert evidence_coefficient(0, initial=0.5, steps=25, schedule=schedule) == 0.5
    assert evidence_coefficient(25, initial=0.5, steps=25, schedule=schedule) == 0.0
    assert evidence_coefficient(1000, initial=0.5, steps=25, schedule=schedule) == 0.0


def test_linear_coefficient_by_hand():
    values = [evidence_coefficient(step, initial=0.5, steps=5) for step in range(7)]
    assert values == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0])


ONE = torch.ones(1)
PAIR = torch.zeros(1, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evidence_weights(PAIR, ONE, clip=0.0), "got 0.0"),
        (lambda: evidence_weights(PAIR, ONE, clip=1.0), "got 1.0"),
        (lambda: evidence_weights(PAIR, ONE, clip=-0.2), "got -0.2"),
        (lambda: evidence_weights(PAIR, ONE, clip=math.nan), "got nan"),
        (lambda: evidence_weights(PAIR, torch.ones(2), clip=0.5), r"\(2,\) and \(1, 2\)"),
        (lambda: evidence(PAIR, torch.zeros(1, 3)), r"\(1, 3\)"),
        (lambda: token_advantages(ONE, PAIR, PAIR.bool(), coefficient=1.5, clip=0.5), "got 1.5"),
        (lambda: token_advantages(ONE, PAIR, PAIR.bool(), coefficient=-0.1, clip=0.5), "got -0.1"),
        (lambda: token_advantages(ONE, PAIR, torch.ones(1, 3), coefficient=0.5, clip=0.5), r"\(1, 3\)"),
        (lambda: mean_probability(torch.zeros(2, 1, 3), torch.ones(1, 2).bool()), r"\(1, 2\)"),
        (lambda: evidence_coefficient(-1, initial=0.5, steps=5), "-1"),
        (lambda: evidence_coefficient(0, initial=1.5, steps=5), "1.5"),
        (lambda: evidence_coefficient(0, initial=0.5, steps=5, schedule="steep"), "steep"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
