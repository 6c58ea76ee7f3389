"""Full and prefix-cached forward passes equal the logits of the model run on each request alone."""

import random
from dataclasses import replace
from functools import partial
from itertools import zip_longest

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from trl.trainer.utils import add_fused_lm_head

from cepo.fast.prefix_cache import PrefixCachedForward, branched_states, cache_argument, trial_reason
from cepo.scoring.forward import FullForward, ScoringModel, evaluating, hidden_states
from cepo.scoring.requests import Prompt, Request, batches_of
from tests.support import tiny_models
from tests.support.prompts import SHAREABLE, prompt_for, words
from tests.support.tiny_models import HYBRID_MODELS


def a_batch(name, seed=0, images=(1, 2, 1)):
    """Three prompts of different lengths with two or three contexts each and several rollouts."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    prompts = [prompt_for(name, draw, number) for number in images]
    requests = []
    for index, prompt in enumerate(prompts):
        body, header = prompt.ids[:-3], prompt.ids[-3:]
        contexts = [body + words(draw, 2, 6) + header for _ in range(2)] + [prompt.ids] * (index == 1)
        completions = [words(draw, 1, 14) for _ in range(4)]
        requests += [Request(index, context, completion) for context in contexts for completion in completions]
    draw.shuffle(requests)
    return prompts, requests


def policy_of(model):
    return ScoringModel(model, model)


def alone(model, prompts, request):
    """Log-probs of one request from its logits, without padding, cache or fused head."""
    prompt = prompts[request.prompt]
    ids = torch.tensor([request.context + request.completion])
    types = {
        name: torch.cat([values[: prompt.images_end], values.new_zeros(ids.shape[1] - prompt.images_end)])[None]
        for name, values in prompt.token_types.items()
    }
    logits = model(input_ids=ids, **types, **prompt.images).logits[0].double()
    log_probs = logits[:-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    return log_probs[len(request.context) - 1 :].float()


def assert_exact(model, prompts, requests, results, **tolerance):
    tolerance = {"atol": 2e-5, "rtol": 1e-4} | tolerance
    for request, result in zip(requests, results, strict=True):
        assert_close(result, alone(model, prompts, request), **tolerance)


@pytest.mark.parametrize("name", [*SHAREABLE, *HYBRID_MODELS])
@pytest.mark.parametrize("max_tokens", [1, 150, 10_000])
def test_full_forward_equals_the_logits(name, max_tokens):
    model = tiny_models.make(name)
    prompts, requests = a_batch(name)
    with evaluating(model):
        results = FullForward(policy_of(model), max_tokens).log_probs(prompts, requests)
        assert_exact(model, prompts, requests, results)


@pytest.mark.parametrize("name", SHAREABLE)
@pytest.mark.parametrize(("max_tokens", "seed"), [(1, 0), (150, 1), (10_000, 2)])
def test_prefix_cached_forward_equals_the_logits(name, max_tokens, seed):
    model = tiny_models.make(name, seed)
    prompts, requests = a_batch(name, seed)
    shared = PrefixCachedForward(policy_of(model), max_tokens)
    with evaluating(model):
        assert trial_reason(shared, prompts, requests) is None
        assert_exact(model, prompts, requests, shared.log_probs(prompts, requests))


def counted(policy):
    """Tokens of each pass with padding, and number of attended tokens."""
    calls = []
    policy.model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    return calls


def test_a_prompt_and_its_contexts_are_run_once():
    """8 rollouts in 2 contexts: the prefix, each hint, and each completion with the token before it run once."""
    model = tiny_models.make("qwen3_vl")
    prompts, _ = a_batch("qwen3_vl", images=(1,))
    (prompt,) = prompts
    draw = random.Random(3)
    contexts = [(*prompt.ids[:-3], *hint, *prompt.ids[-3:]) for hint in ((20, 21, 22), (30, 31, 32))]
    completions = [words(draw, 9, 9) for _ in range(8)]
    requests = [Request(0, context, completion) for context in contexts for completion in completions]
    policy = policy_of(model)
    calls = counted(policy)
    with evaluating(model):
        PrefixCachedForward(policy, 10_000).log_probs(prompts, requests)
    prefix = len(prompt.ids) - 3
    assert calls == [(1, prefix), (2, 5), (16, 10)]
    calls.clear()
    with evaluating(model):
        FullForward(policy, 10_000).log_probs(prompts, requests)
    assert calls == [(16, len(contexts[0]) + 9)]


@pytest.mark.parametrize("max_tokens", [40, 90, 200])
def test_a_pass_respects_max_tokens(max_tokens):
    """Rows times cached and run tokens; a single row always fits."""
    model = tiny_models.make("llama")
    prompts, requests = a_batch("llama")
    policy = policy_of(model)
    held = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: held.append(kwargs["attention_mask"].shape), with_kwargs=True
    )
    with evaluating(model):
        PrefixCachedForward(policy, max_tokens).log_probs(prompts, requests)
        FullForward(policy, max_tokens).log_probs(prompts, requests)
    longest = max(len(request.context) + len(request.completion) for request in requests)
    contexts = 3
    assert all(rows * width <= max(max_tokens, contexts * longest) for rows, width in held)
    assert len(held) > 6


def test_batches_of_partitions_within_the_budget():
    lengths = [1, 1, 2, 3, 5, 8, 13]
    batches = list(batches_of(lengths, lambda length: length, 10))
    assert [length for batch in batches for length in batch] == lengths
    assert [list(batch) for batch in batches] == [[1, 1, 2], [3, 5], [8], [13]]
    assert list(batches_of([], len, 10)) == []


def test_without_requests_there_are_no_passes():
    model = tiny_models.make("qwen3")
    policy = policy_of(model)
    calls = counted(policy)
    prompts, _ = a_batch("qwen3")
    assert PrefixCachedForward(policy, 100).log_probs(prompts, []) == []
    assert FullForward(policy, 100).log_probs(prompts, []) == []
    assert calls == []


@pytest.mark.parametrize("forward_class", [FullForward, PrefixCachedForward])
def test_processes_run_the_same_number_of_passes(forward_class):
    """Under FSDP every process takes part in each forward pass."""
    model = tiny_models.make("qwen3_vl")
    policy = policy_of(model)
    calls = counted(policy)
    prompts, requests = a_batch("qwen3_vl")
    wanted = []

    def record(numbers):
        wanted.append(list(numbers))
        return list(numbers)

    with evaluating(model):
        results = forward_class(policy, 150, record).log_probs(prompts, requests)
        expected_calls = len(calls)
        answers = iter(wanted)
        calls.clear()
        assert forward_class(policy, 150, lambda numbers: next(answers)).log_probs(prompts, []) == []
        assert len(calls) == expected_calls
        answers = iter(wanted)
        calls.clear()
        other = forward_class(
            policy, 150, lambda numbers: [max(pair) for pair in zip_longest(next(answers), numbers, fillvalue=0)]
        )
        assert_close(other.log_probs(prompts, requests[:1])[0], results[0], atol=2e-5, rtol=1e-4)
        assert len(calls) == expected_calls


@pytest.mark.parametrize("name", SHAREABLE)
def test_branched_states_equal_full_hidden_states(name):
    """Values and gradients; each distinct context is run once."""
    model, (prompts, requests) = tiny_models.make(name).eval(), a_batch(name, seed=3)
    again = [replace(request, prompt=request.prompt + len(prompts)) for request in requests]
    prompts, requests = [*prompts, *prompts], [*requests, *again]
    ran, found = [], []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, ids: ran.append(ids[0].shape))
    for states in (hidden_states, branched_states):
        model.zero_grad()
        hidden = states(model, prompts, requests)
        (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
        grads = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        found.append((hidden.detach(), torch.cat(grads)))
    hook.remove()
    (expected, gradient), (hidden, other) = found
    assert_close(hidden, expected, atol=2e-5, rtol=1e-4)
    assert (other - gradient).norm() <= 1e-5 * gradient.norm()
    whole, contexts, _ = ran
    assert whole[0] == len(requests)
    assert contexts[0] == len({request.context for request in requests})


@pytest.mark.parametrize("name", HYBRID_MODELS)
def test_recurrent_layers_are_not_shared(name):
    model = tiny_models.make(name)
    prompts, requests = a_batch(name)
    assert "LinearAttention" in trial_reason(PrefixCachedForward(policy_of(model), 1000), prompts, requests)


def test_the_trial_detects_a_cache_that_cannot_be_expanded(monkeypatch):
    """One model ignores its position ids, one raises."""
    model = tiny_models.make("qwen3")
    prompts, requests = a_batch("qwen3")
    policy = policy_of(model)
    forward, called = model.base_model.forward, cache_argument(model.base_model)

    def misplaced(*args, position_ids=None, **kwargs):
        wrong = None if position_ids is None else position_ids * (kwargs[called].get_seq_length() == 0)
        return forward(*args, position_ids=wrong, **kwargs)

    def broken(*args, **kwargs):
        if kwargs.get(called) is not None and kwargs[called].get_seq_length() > 0:
            raise RuntimeError("no cache\nat all")
        return forward(*args, **kwargs)

    shared = PrefixCachedForward(policy, 1000)
    with evaluating(model):
        assert trial_reason(shared, prompts, requests) is None
        monkeypatch.setattr(model.base_model, "forward", misplaced)
        assert "nats" in trial_reason(shared, prompts, requests)
        monkeypatch.setattr(model.base_model, "forward", broken)
        assert "no cache" in trial_reason(shared, prompts, requests)
        monkeypatch.undo()
        assert "another process" in trial_reason(
            PrefixCachedForward(policy, 1000, _failing_elsewhere), prompts, requests
        )


def _failing_elsewhere(numbers):
    return [1] if numbers == [0] else list(numbers)


@pytest.mark.parametrize("images_end", [None, 1_000])
def test_a_prompt_that_ends_with_images_is_run_whole(images_end):
    model = tiny_models.make("qwen3_vl")
    prompts, requests = a_batch("qwen3_vl")
    unclear = [*prompts[:2], Prompt(prompts[2].ids, prompts[2].images, prompts[2].token_types, images_end)]
    policy = policy_of(model)
    calls = counted(policy)
    with evaluating(model):
        results = PrefixCachedForward(policy, 10_000).log_probs(unclear, requests)
        assert len(calls) == 4  # prompts, contexts, completions; and one whole
        if images_end is None:
            assert_exact(model, prompts, requests, results)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_vl", "gemma3"])
def test_bfloat16_passes_the_trial(name):
    """Both ways have the same error, and the trial accepts it."""
    model = tiny_models.make(name)
    prompts, requests = a_batch(name)
    policy = policy_of(model)
    with evaluating(model):
        exact = torch.cat(PrefixCachedForward(policy, 10_000).log_probs(prompts, requests))
        model.bfloat16()
        rounded = [
            Prompt(p.ids, {k: _half(v) for k, v in p.images.items()}, p.token_types, p.images_end) for p in prompts
        ]
        shared, whole = PrefixCachedForward(policy, 10_000), FullForward(policy, 10_000)
        off_shared = (torch.cat(shared.log_probs(rounded, requests)) - exact).abs().mean()
        off_whole = (torch.cat(whole.log_probs(rounded, requests)) - exact).abs().mean()
        assert trial_reason(shared, rounded, requests) is None
    assert off_shared < 1.5 * off_whole + 1e-3


@pytest.mark.parametrize("autocast", [False, True])
def test_logits_are_not_rounded_in_half_precision(autocast):
    """Log-probs are those of exact products of the rounded inputs; TRL's, of rounded logits, are 100 times as far."""
    model = tiny_models.make("qwen3")
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    if not autocast:
        model.bfloat16()
    add_fused_lm_head(model)
    ids = torch.randint(3, 60, (2, 12))
    labels = ids.masked_fill(torch.arange(12) < 5, -100)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    precision = partial(torch.autocast, "cpu", torch.bfloat16, enabled=autocast)
    with evaluating(model):
        found = ScoringModel(model, model, precision).log_probs(labels, **inputs)
        with precision():
            hidden = model.base_model(**inputs).last_hidden_state.bfloat16().double()
            rounded = model(labels=labels, fused_lm_head=True, **inputs).log_probs
    exact = (hidden @ model.lm_head.weight.bfloat16().double().T)[:, :-1].log_softmax(-1)
    exact = exact.gather(-1, ids[:, 1:, None]).squeeze(-1).float().masked_fill(labels[:, 1:] == -100, 0.0)
    assert_close(found, exact, atol=1e-5, rtol=1e-5)
    assert (rounded - exact).abs().max() > 100 * (found - exact).abs().max()


def _half(values):
    return values.bfloat16() if values.is_floating_point() else values


def test_adapters_and_gradient_checkpointing():
    """LoRA with dropout and gradient checkpointing, as in training: scoring is exact and without dropout."""
    model = tiny_models.make("qwen3")
    add_fused_lm_head(model)
    prompts, requests = a_batch("qwen3")
    adapted = get_peft_model(
        model, LoraConfig(r=4, lora_dropout=0.5, init_lora_weights=False, target_modules="all-linear")
    )
    model.gradient_checkpointing_enable()
    adapted.train()
    policy = ScoringModel(adapted, model)
    with evaluating(adapted):
        assert trial_reason(PrefixCachedForward(policy, 150), prompts, requests) is None
        assert_exact(model, prompts, requests, PrefixCachedForward(policy, 150).log_probs(prompts, requests))
        with adapted.disable_adapter():
            base = PrefixCachedForward(policy, 150).log_probs(prompts, requests)
            assert_exact(model, prompts, requests, base)
    assert adapted.training


def test_scoring_holds_no_logits_of_the_vocabulary():
    vocabulary = 20_000
    config = tiny_models.TEXT | {"vocab_size": vocabulary}
    model = tiny_models.LlamaForCausalLM(tiny_models.LlamaConfig(**config)).eval()
    policy = policy_of(model)
    prompts, requests = a_batch("llama")
    completions = [Request(r.prompt, r.context, r.completion * 20) for r in requests]
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (out if isinstance(out, (tuple, list)) else [out]) if torch.is_tensor(t))
            return out

    tokens = max(len(r.completion) for r in completions) * len(completions)
    for forward_class in (PrefixCachedForward, FullForward):
        sizes.clear()
        with evaluating(model), Watch():
            forward_class(policy, 100_000).log_probs(prompts, completions)
        assert max(sizes) < 0.1 * tokens * vocabulary
