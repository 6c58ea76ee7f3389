"""Divergences against plain float64 loops, gradients against the paper's formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import cepo.distillation.divergence
from cepo.distillation.divergence import divergence
from cepo.scoring.head import Head, sampled_log_probs

V, H = 7, 5


def made(seed, positions=4):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    student, teacher = Head(random(V, H), random(V)), Head(random(V, H), random(V))
    return random(positions, H).requires_grad_(), student, random(positions, H), teacher


def distribution(hidden, head, temperature=1.0):
    """Probabilities at one position, as a list."""
    logits = [
        head.scale * (sum(float(h) * float(w) for h, w in zip(hidden.detach(), row, strict=True)) + float(bias))
        for row, bias in zip(head.weight, head.bias, strict=True)
    ]
    if head.softcap is not None:
        logits = [head.softcap * math.tanh(logit / head.softcap) for logit in logits]
    top = max(logits)
    exps = [math.exp((logit - top) / temperature) for logit in logits]
    return [value / sum(exps) for value in exps]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def plain(s, t, beta):
    if beta == 0:
        return kl(t, s)
    if beta == 1:
        return kl(s, t)
    mixture = [beta * b + (1 - beta) * a for a, b in zip(s, t, strict=True)]
    return beta * kl(t, mixture) + (1 - beta) * kl(s, mixture)


def with_tail(s, t, k):
    kept = sorted(range(len(s)), key=lambda v: -s[v])[:k]
    rest = [v for v in range(len(s)) if v not in kept]
    return [[p[v] for v in kept] + [sum(p[v] for v in rest)] for p in (s, t)]


@settings(max_examples=25)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.sampled_from([None, 1, 3, V, V + 1]))
def test_divergence_and_entropy(seed, beta, top_k):
    hidden, student, teacher_hidden, teacher = made(seed)
    values, entropies = divergence(hidden, student, teacher_hidden, teacher, beta=beta, top_k=top_k)
    for position in range(len(hidden)):
        s, t = distribution(hidden[position], student), distribution(teacher_hidden[position], teacher)
        pair = with_tail(s, t, top_k) if top_k is not None and top_k < V else (s, t)
        assert values[position].item() == pytest.approx(plain(*pair, beta), abs=2e-5)
        assert entropies[position].item() == pytest.approx(-sum(p * math.log(p) for p in s), abs=2e-5)


@pytest.mark.parametrize("top_k", [None, 3])
def test_temperature_scale_and_softcap(top_k):
    hidden, student, teacher_hidden, teacher = made(1)
    student = Head(student.weight, student.bias, scale=0.5, softcap=2.0)
    values, _ = divergence(hidden, student, teacher_hidden, teacher, beta=0.5, temperature=0.7, top_k=top_k)
    for position in range(len(hidden)):
        s = distribution(hidden[position], student, 0.7)
        t = distribution(teacher_hidden[position], teacher, 0.7)
        pair = with_tail(s, t, top_k) if top_k else (s, t)
        assert values[position].item() == pytest.approx(plain(*pair, 0.5), abs=2e-5)


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_gradients_of_the_student_alone(beta, top_k):
    hidden, student, teacher_hidden, teacher = made(2)
    weight = student.weight.clone().requires_grad_()
    teacher_hidden.requires_grad_()
    values, _ = divergence(hidden, Head(weight, student.bias), teacher_hidden, teacher, beta=beta, top_k=top_k)
    values.sum().backward()
    assert teacher_hidden.grad is None
    found = hidden.grad.clone(), weight.grad.clone()

    hidden.grad = None
    again = student.weight.clone().requires_grad_()
    log_s = (hidden @ again.T + student.bias).log_softmax(-1)
    log_t = (teacher_hidden.detach() @ teacher.weight.T + teacher.bias).log_softmax(-1)
    if top_k:
        kept = log_s.topk(top_k).indices
        log_s, log_t = (
            torch.cat([x.gather(-1, kept), (1 - x.gather(-1, kept).exp().sum(-1, keepdim=True)).log()], -1)
            for x in (log_s, log_t)
        )
    if beta in (0.0, 1.0):
        first, second = (log_t, log_s) if beta == 0 else (log_s, log_t)
        total = (first.exp() * (first - second)).sum()
    else:
        mixture = (beta * log_t.exp() + (1 - beta) * log_s.exp()).log()
        total = (beta * log_t.exp() * (log_t - mixture) + (1 - beta) * log_s.exp() * (log_s - mixture)).sum()
    total.backward()
    assert_close(found[0], hidden.grad, atol=1e-5, rtol=1e-4)
    assert_close(found[1], again.grad, atol=1e-5, rtol=1e-4)


def test_a_small_tail_is_not_rounded_away():
    """1 minus a float32 sum resolves nothing below 1e-7."""
    weight = torch.eye(V)
    student, teacher = torch.zeros(1, V), torch.zeros(1, V)
    student[0, 0], teacher[0, 1] = 40.0, 3.0
    values, _ = divergence(student, Head(weight), teacher, Head(weight), beta=0.0, top_k=1)
    log_s, log_t = student.double().log_softmax(-1)[0], teacher.double().log_softmax(-1)[0]
    pairs = [(log_t[0], log_s[0]), (log_t[1:].logsumexp(0), log_s[1:].logsumexp(0))]
    assert values.item() == pytest.approx(sum((t.exp() * (t - s)).item() for t, s in pairs), rel=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("top_k", [None, 20])
def test_half_precision_does_not_round_logits(autocast, top_k):
    """Student and teacher nearly agree, and their logits are so large that rounding would dominate."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(16, 64, generator=generator)
    teacher_hidden = hidden + 0.01 * torch.randn(16, 64, generator=generator)
    weight = torch.randn(200, 64, generator=generator)
    halves = [part.bfloat16() for part in (hidden, teacher_hidden, weight)]
    exact_h, exact_t, exact_w = (part.double() for part in halves)
    given_h, given_t, given_w = halves if not autocast else [part.float() for part in halves]
    exact_h.requires_grad_()
    given_h.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values, _ = divergence(given_h, Head(given_w), given_t, Head(given_w), beta=0.5, top_k=top_k)
    log_s, log_t = ((h @ exact_w.T).log_softmax(-1) for h in (exact_h, exact_t))
    if top_k:
        kept = log_s.topk(top_k).indices
        rest = torch.ones_like(log_s).scatter(-1, kept, 0.0).bool()
        tails = [x.masked_fill(~rest, -math.inf).logsumexp(-1, keepdim=True) for x in (log_s, log_t)]
        log_s, log_t = (torch.cat([x.gather(-1, kept), t], -1) for x, t in zip((log_s, log_t), tails, strict=True))
    mixture = ((log_s.exp() + log_t.exp()) / 2).log()
    exact = sum((x.exp() * (x - mixture)).sum(-1) for x in (log_s, log_t)) / 2
    assert 0 < exact.max() < 1e-2
    assert_close(values.double(), exact, rtol=1e-2, atol=1e-6)
    (gradient,) = torch.autograd.grad(values.sum(), given_h)
    (exact_gradient,) = torch.autograd.grad(exact.sum(), exact_h)
    cosine = torch.cosine_similarity(gradient.double().flatten(), exact_gradient.flatten(), dim=0)
    assert cosine > 0.999


def test_chunks_give_the_same_result(monkeypatch):
    args = made(6)
    whole = divergence(*args, beta=0.5, top_k=3)
    whole_gradient = torch.autograd.grad(whole[0].sum(), args[0])
    monkeypatch.setattr(cepo.distillation.divergence, "CHUNK", 2)
    parts = divergence(*args, beta=0.5, top_k=3)
    assert_close(parts, whole)
    assert_close(torch.autograd.grad(parts[0].sum(), args[0]), whole_gradient)


def test_opsds_gradient_is_a_sum_over_the_vocabulary():
    """Paper: the gradient of forward KL is -sum_v P_T(v) grad log P_S(v)."""
    hidden, student, teacher_hidden, teacher = made(3, positions=1)
    values, _ = divergence(hidden, student, teacher_hidden, teacher, beta=0.0)
    (found,) = torch.autograd.grad(values.sum(), hidden)
    p_t = (teacher_hidden @ teacher.weight.T + teacher.bias).softmax(-1)
    expected = torch.zeros_like(hidden)
    for token in range(V):
        log_s = (hidden @ student.weight.T + student.bias).log_softmax(-1)[0, token]
        expected -= p_t[0, token] * torch.autograd.grad(log_s, hidden)[0]
    assert_close(found, expected, atol=1e-5, rtol=1e-4)
    # CEPO's gradient is a multiple of that at the sampled token; this one is not.
    log_s = (hidden @ student.weight.T + student.bias).log_softmax(-1)[0, 2]
    (sampled,) = torch.autograd.grad(log_s, hidden)
    assert abs(torch.cosine_similarity(found, sampled).item()) < 0.99


def test_log_probs_of_sampled_tokens():
    hidden, student, *_ = made(4)
    tokens = torch.tensor([0, 3, 6, 1])
    found = sampled_log_probs(hidden, student, tokens, 1.0)
    for position, token in enumerate(tokens.tolist()):
        assert found[position].item() == pytest.approx(
            math.log(distribution(hidden[position], student)[token]), abs=1e-5
        )
