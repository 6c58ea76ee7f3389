"""A cache that grows in place, and attention without repeated keys, equal those of transformers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cepo.fast.kv_cache import GrowingLayer, grouped_decoding, grow_in_place
from tests.support import tiny_models

# Operations on a cache between two passes: (operation, number).
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 40)),
        st.tuples(st.just("select"), st.integers(0, 10**6)),
        st.tuples(st.just("cut"), st.integers(1, 3)),
        st.tuples(st.just("repeat"), st.integers(1, 2)),
        st.tuples(st.just("reorder"), st.integers(0, 10**6)),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(CHANGES, st.integers(1, 3), st.integers(1, 9))
def test_a_growing_layer_equals_transformers_layer(changes, rows, tokens):
    draw = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(rows, 2, tokens, 4, generator=draw) for _ in range(2))
    reference = DynamicLayer()
    reference.update(keys, values)
    first = DynamicLayer()
    first.update(keys.clone(), values.clone())
    growing = GrowingLayer(first)
    for operation, number in changes:
        rows = reference.keys.shape[0]
        if operation == "add":
            new = [torch.randn(rows, 2, number, 4, generator=draw) for _ in range(2)]
            for one, other in zip(reference.update(*new), growing.update(*new), strict=True):
                assert torch.equal(one, other)
        elif operation == "select":
            picked = torch.randint(rows, (1 + number % rows,), generator=draw)
            reference.batch_select_indices(picked), growing.batch_select_indices(picked)
        elif operation == "cut" and reference.get_seq_length() > number:
            reference.crop(-number), growing.crop(-number)
        elif operation == "repeat" and rows < 10:
            reference.batch_repeat_interleave(number), growing.batch_repeat_interleave(number)
        elif operation == "reorder":
            order = torch.randperm(rows, generator=draw)
            reference.reorder_cache(order), growing.reorder_cache(order)
        assert growing.get_seq_length() == reference.get_seq_length()
        assert growing.get_mask_sizes(1) == reference.get_mask_sizes(1)
        assert torch.equal(growing.keys, reference.keys)
        assert torch.equal(growing.values, reference.values)


def test_growing_seldom_copies():
    """A buffer grows by a quarter, not by one token."""
    first = DynamicLayer()
    first.update(*torch.randn(2, 1, 2, 400, 4).unbind())
    layer, buffers = GrowingLayer(first), set()
    for _ in range(250):
        keys, _ = layer.update(*torch.randn(2, 1, 2, 1, 4).unbind())
        buffers.add(keys.untyped_storage().data_ptr())
    assert len(buffers) <= 3


def test_sliding_window_layers_are_unchanged():
    model = tiny_models.make("gemma3").eval()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.randint(6, 50, (2, 9)), past_key_values=cache)
    kinds = [type(layer) for layer in cache.layers]
    grow_in_place(cache)
    assert len(set(kinds)) == 2
    for before, layer in zip(kinds, cache.layers, strict=True):
        assert type(layer) is (GrowingLayer if before is DynamicLayer else before)


def attend(heads, shared, queries, mask, **options):
    draw = torch.Generator().manual_seed(1)
    query = torch.randn(3, heads, queries, 8, generator=draw)
    key, value = (torch.randn(3, shared, 11, 8, generator=draw) for _ in range(2))

    class Module(torch.nn.Module):
        num_key_value_groups = heads // shared
        is_causal = True

    attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
    return attention(Module(), query, key, value, mask, scaling=0.3, **options)[0]


@pytest.mark.parametrize("masked", [None, "bool", "float"])
@pytest.mark.parametrize("queries", [1, 4])
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (6, 1)])
def test_attention_equals_transformers(heads, shared, queries, masked, monkeypatch):
    mask = None
    if masked:
        seen = torch.rand(3, 1, queries, 11, generator=torch.Generator().manual_seed(2)) < 0.7
        seen[..., 0] = True
        mask = seen if masked == "bool" else torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    with torch.no_grad():
        expected = attend(heads, shared, queries, mask)
        shapes, plain = [], torch.nn.functional.scaled_dot_product_attention

        def noted(query, key, value, **options):
            shapes.append((query.shape[1], key.shape[1]))
            return plain(query, key, value, **options)

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
        with grouped_decoding():
            found = attend(heads, shared, queries, mask)
        assert_close(found, expected, atol=1e-6, rtol=1e-5)
        if queries == 1 and heads > shared:  # no head of keys is copied
            assert shapes == [(shared, shared)]


def test_with_gradient_transformers_attention_is_used(monkeypatch):
    shapes, plain = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda query, key, value, **options: shapes.append(query.shape) or plain(query, key, value, **options),
    )
    own, passed_on = ALL_ATTENTION_FUNCTIONS["sdpa"], []
    monkeypatch.setitem(
        ALL_ATTENTION_FUNCTIONS, "sdpa", lambda *args, **options: passed_on.append(1) or own(*args, **options)
    )
    mask = torch.ones(3, 1, 1, 11, dtype=torch.bool)
    attend(4, 2, 1, mask)
    with grouped_decoding():
        attend(4, 2, 1, mask)
        assert len(passed_on) == 2
        assert len(shapes) == 2
        assert shapes[0] == shapes[1]
        with torch.no_grad():
            attend(4, 2, 1, mask)
        assert len(passed_on) == 2


def test_the_patch_is_undone():
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with grouped_decoding():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not before
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    with pytest.raises(KeyError), grouped_decoding():
        raise KeyError
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma3", "qwen3_vl"])
def test_a_model_generates_the_same_tokens(name):
    model = tiny_models.make(name).eval()
    ids = torch.randint(6, 50, (4, 12), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :5] = mask[1, :2] = 0
    logits = []
    for in_place in (False, True):
        cache, found, seen = DynamicCache(config=model.config), [], mask
        with torch.no_grad(), grouped_decoding() if in_place else torch.no_grad():
            found.append(model(ids, attention_mask=mask, past_key_values=cache).logits[:, -1:])
            if in_place:
                grow_in_place(cache)
            for token in range(20):
                seen = torch.cat([seen, mask[:, -1:]], dim=1)
                step = torch.full((4, 1), 6 + token)
                found.append(model(step, attention_mask=seen, past_key_values=cache).logits)
        logits.append(torch.cat(found, dim=1))
    assert_close(logits[1], logits[0], atol=2e-5, rtol=1e-4)
