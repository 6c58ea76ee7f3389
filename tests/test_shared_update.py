"""Shared prompts: the log-probs, entropies, gradients and samples of whole rows, with fewer tokens."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from cepo import CEPOConfig, CEPOTrainer, policy_path
from cepo.fast.generation import PrefixSharingGenerator, SharedPrompts
from cepo.fast.kv_cache import cache_unsupported_reason
from cepo.fast.trainer import tree_of_rows
from cepo.fast.tree_attention import tree_unsupported_reason
from cepo.fast.tree_forward import tree_log_probs
from cepo.scoring.requests import distinct_prompts
from cepo.trainer.batches import images_of_rows
from tests.support import tiny_models
from tests.support.prompts import SHAREABLE, prompt_for, words
from tests.support.tiny_models import HYBRID_MODELS, IMAGE_MODELS
from tests.support.training import QUICK, half_right, logged, weights_of


def batch_of(name, prompts, groups, draw):
    """A micro-batch in TRL's layout, rows shuffled, prompts padded on the left, completions on the right."""
    rows = [(prompt, words(draw, 0, 9)) for prompt, size in zip(prompts, groups, strict=True) for _ in range(size)]
    draw.shuffle(rows)
    width, longest = max(len(p.ids) for p, _ in rows) + 2, max(1, *(len(c) for _, c in rows))
    ids, mask = torch.zeros(2, len(rows), width + longest, dtype=torch.long).unbind()
    types = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(rows):
        start = width - len(prompt.ids)
        ids[row, start : width + len(completion)] = torch.tensor(prompt.ids + completion)
        mask[row, start : width + len(completion)] = 1
        for values in prompt.token_types.values():
            types[row, start:width] = values
    batch = {"input_ids": ids, "attention_mask": mask}
    if name in IMAGE_MODELS:
        batch["token_type_ids" if name == "gemma3_vl" else "mm_token_type_ids"] = types
        images = [prompt.images for prompt, _ in rows]
        batch |= {key: torch.cat([one[key] for one in images]) for key in images[0]}
        if name != "gemma3_vl":
            batch["num_images"] = [1] * len(rows)
    return batch, width


def whole(model, batch, width):
    """Log-probs and entropies by TRL's forward pass."""
    inputs = {name: value for name, value in batch.items() if name != "num_images"}
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :width] = -100
    output = model(labels=labels, fused_lm_head=True, **inputs)
    return output.log_probs[:, width - 1 :], output.entropy[:, width - 1 :]


def shared(model, batch, width, tree):
    """Log-probs and entropies by one pass over the tree."""
    mask = batch["attention_mask"][:, width:].bool()
    return [one.new_zeros(mask.shape).masked_scatter(mask, one) for one in tree_log_probs(model, model, *tree)]


def evaluate(model, batch, width, way):
    """Log-probs, entropies and the gradient of a loss of both."""
    model.zero_grad()
    log_probs, entropies = way(model)
    mask = batch["attention_mask"][:, width:]
    weights = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0)) * mask
    (weights * log_probs + 0.3 * weights.flip(0) * mask * entropies).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return log_probs.detach() * mask, entropies.detach() * mask, gradient


@pytest.fixture(scope="module")
def models():
    made = {}

    def of(name):
        if name not in made:
            made[name] = tiny_models.make(name)
            add_fused_lm_head(made[name], outputs=("log_probs", "entropy"))
        return made[name]

    return of


def tree_of_batch(batch, width):
    return tree_of_rows(batch, batch["input_ids"].shape[1] - width, tiny_models.IMAGE)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", SHAREABLE)
@settings(max_examples=8)
@given(groups=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=st.integers(0, 10**6))
def test_a_tree_equals_whole_rows(models, name, checkpointing, groups, seed):
    """Groups of different sizes, prompts padded on the left, completions on the right, sliding windows, M-RoPE."""
    model, draw = models(name), random.Random(seed)
    torch.manual_seed(seed)
    prompts = [prompt_for(name, draw, images=1) for _ in groups]
    batch, width = batch_of(name, prompts, groups, draw)
    tree = tree_of_batch(batch, width)
    if tree is None:
        assert max(groups) == 1
        return
    if checkpointing:
        model.train().gradient_checkpointing_enable()
    try:
        found = evaluate(model, batch, width, lambda model: shared(model, batch, width, tree))
    finally:
        model.eval().gradient_checkpointing_disable()
    expected = evaluate(model, batch, width, lambda model: whole(model, batch, width))
    for one, other in zip(found[:2], expected[:2], strict=True):
        assert_close(one, other, atol=3e-5, rtol=1e-4)
    assert (found[2] - expected[2]).norm() <= 1e-5 * expected[2].norm() + 1e-6


def test_prompts_with_different_images_are_distinct():
    draw = random.Random(0)
    first, second = (prompt_for("gemma3_vl", draw, images=1) for _ in range(2))
    second = type(first)(first.ids, second.images, first.token_types, first.images_end)
    prompts, tree = tree_of_batch(*batch_of("gemma3_vl", [first, second], [2, 2], draw))
    assert len(prompts) == len(tree.roots) == 2
    prompts, tree = tree_of_batch(*batch_of("gemma3_vl", [first, first], [2, 2], draw))
    assert len(prompts) == len(tree.roots) == 1


def test_rows_without_a_shared_prompt():
    ids = torch.tensor([[1, 2, 3], [1, 2, 4]])
    assert tree_of_batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 1) is None  # one prompt token
    assert tree_of_batch({"input_ids": ids.flip(1), "attention_mask": torch.ones_like(ids)}, 2) is None
    masked = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1]])
    assert tree_of_batch({"input_ids": torch.ones_like(masked), "attention_mask": masked}, 3) is None


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("qwen3_next", {}, "its cache has layers other than keys and values"),
        (
            "qwen3",
            {"layer_types": ["chunked_attention"] * 3, "attention_chunk_size": 8},
            "it has layers of chunked_attention",
        ),
        ("qwen3", {"attn_logit_softcapping": 50.0}, "scaled_dot_product_attention does not support its attention"),
        ("qwen3", {"_attn_implementation": "eager"}, "its attention is 'eager'"),
        *((name, {}, None) for name in SHAREABLE),
    ],
)
def test_structure(name, options, reason):
    model = tiny_models.make(name)
    config = model.config.get_text_config()
    for key, value in options.items():
        setattr(config, key, value)
    found = tree_unsupported_reason(model)
    assert found is None if reason is None else reason in found
    assert (cache_unsupported_reason(model) is None) == (name not in HYBRID_MODELS)


# The real trainer -----------------------------------------------------------------------------------------------------


def train(tmp_path, task, shared, trainer_class=CEPOTrainer, **options):
    dataset, model = task
    peft_config = options.pop("peft_config", None)
    if trainer_class is CEPOTrainer:
        options = {"shared_prompt_update": shared, "method": "grpo", **options}
    args = (CEPOConfig if trainer_class is CEPOTrainer else GRPOConfig)(
        output_dir=str(tmp_path), **(QUICK | {"optim": "sgd", "learning_rate": 0.5} | options)
    )
    torch.manual_seed(0)
    trainer = trainer_class(model, half_right, args, dataset, peft_config=peft_config)
    trainer.passes, trainer.sampling = [], []

    def count(module, args):
        (trainer.passes if torch.is_grad_enabled() else trainer.sampling).append(args[0].shape)

    trainer.model.get_input_embeddings().register_forward_pre_hook(count)
    trainer.train()
    return trainer


SITUATIONS = {
    **{name: {"loss_type": name} for name in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "luspo", "sapo", "vespo")},
    "accumulated": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "loss_type": "grpo"},
    "kl": {"beta": 0.3},
    "entropy": {"entropy_coef": 0.1},
    "high entropy": {"top_entropy_quantile": 0.4},
    "twice": {"num_iterations": 2, "max_steps": 4},
    "slices": {"per_device_train_batch_size": 4, "steps_per_generation": 2, "max_steps": 4},
    "sequence": {"importance_sampling_level": "sequence"},
    "checkpointing": {"gradient_checkpointing": True},
    "cepo": {"method": "cepo"},
    "rlsd": {"method": "rlsd"},
    "lora": {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), "beta": 0.2},
    "lora, checkpointing": {
        "peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        "gradient_checkpointing": True,
    },
    "frozen tower": {"freeze_vision_tower": True},
    "opsd": {"method": "opsd"},
    "opsd, a lagging teacher, accumulated": {
        "method": "opsd",
        "teacher": "ema",
        "teacher_ema_decay": 0.5,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    },
    "sdpo, lora": {"method": "sdpo", "peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"])},
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_steps_equal_those_of_whole_rows(tmp_path, task, name):
    """Losses, entropies and weights after real steps of SGD."""
    options = SITUATIONS[name]
    if name == "frozen tower" and task[1] != policy_path():
        options = {}
    whole_rows = train(tmp_path, task, "never", **options)
    shared = train(tmp_path, task, "always", **options)
    assert sum(map(math.prod, shared.passes)) < sum(map(math.prod, whole_rows.passes))
    assert any(value > 0 for value in logged(whole_rows, "grad_norm"))
    for key in ("loss", "grad_norm", "entropy", "reward"):
        assert logged(shared, key) == pytest.approx(logged(whole_rows, key), rel=2e-3, abs=2e-5)
    expected = weights_of(whole_rows)
    for weight_name, weight in weights_of(shared).items():
        assert_close(weight, expected[weight_name], atol=2e-5, rtol=1e-3)


def test_never_is_bit_identical_to_trl(tmp_path, task):
    found = train(tmp_path, task, "never", epsilon_high=0.28)
    reference = train(tmp_path, task, "never", trainer_class=GRPOTrainer, epsilon_high=0.28)
    expected = weights_of(reference)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(found).items())


def test_dropout_is_not_shared(tmp_path, task, caplog):
    dropped = {"peft_config": LoraConfig(r=4, lora_dropout=0.3, target_modules=["q_proj"])}
    trainer = train(tmp_path, task, "auto", **dropped)
    assert trainer._sharing.shares is False
    lines = [record.getMessage() for record in caplog.records if "once per rollout" in record.getMessage()]
    assert lines == [
        "the update runs every prompt once per rollout: all rollouts of a prompt would share its dropout. "
        "This is slower and gives the same numbers."
    ]
    with pytest.raises(ValueError, match="shared_prompt_update='always': all rollouts of a prompt"):
        train(tmp_path, task, "always", **dropped)


def test_groups_stay_together_in_the_micro_batches_of_one_step(tmp_path, task):
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "loss_type": "grpo", "max_steps": 1}
    kept = train(tmp_path, task, "auto", **options)
    assert all(len({tuple(row) for row in part["prompt_ids"].tolist()}) == 1 for part in kept._buffered_inputs)
    assert kept._sharing._keeps_groups()
    for other in ({"loss_type": "bnpo"}, {"top_entropy_quantile": 0.5}, {"steps_per_generation": 6, "max_steps": 2}):
        assert not train(tmp_path, task, "auto", **{**options, **other})._sharing._keeps_groups()


# Sampling -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"])}])
def test_shared_prompts_sample_the_same_tokens(tmp_path, task, options, monkeypatch):
    """With the same seed; each distinct prompt runs once in a batch, except in the trial."""
    sampled = {}
    for shared in ("never", "auto"):
        rows, original = [], GRPOTrainer._generate_single_turn

        def generate(self, *args, rows=rows, original=original, **kwargs):
            self.sampling.clear()
            found = original(self, *args, **kwargs)
            rows.append((found[0], [shape[0] for shape in self.sampling if shape[1] > 1]))
            return found

        monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", generate)
        train(tmp_path, task, shared, **options)
        monkeypatch.undo()
        sampled[shared] = rows
    assert [tokens for tokens, _ in sampled["auto"]] == [tokens for tokens, _ in sampled["never"]]
    assert [prompts for _, prompts in sampled["auto"]] == [[8, 2], [2]]  # whole rows, and the trial
    assert [prompts for _, prompts in sampled["never"]] == [[8], [8]]


def inputs_of(name, images, groups, draw):
    """Inputs of `generate` for groups of rows, and their shared prompts."""
    prompts = [prompt_for(name, draw, images) for _ in groups]
    batch, width = batch_of(name, prompts, groups, draw)
    inputs = {key: value for key, value in batch.items() if key != "num_images"}
    for key in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
        if key in inputs:
            inputs[key] = inputs[key][:, :width]
    if images:
        batch["num_images"] = [images] * sum(groups)
    rows = images_of_rows({key: value for key, value in batch.items() if key not in ("input_ids", "attention_mask")})
    ids = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -1)
    firsts, owners = distinct_prompts(ids.tolist(), rows.same)
    assert len(firsts) == len(groups)
    return inputs, SharedPrompts(firsts, owners, rows.of(firsts) if images else {})


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize(("name", "images"), [("qwen3_vl", 2), ("qwen2_5_vl", 1), ("gemma3_vl", 1), ("gemma3", 0)])
def test_generate_gives_the_tokens_and_logits_of_whole_prompts(monkeypatch, models, name, images, sampled):
    """Up to the end of each row, with sliding windows too."""
    monkeypatch.setattr("cepo.fast.generation._COUNTED_EVERY", 2)
    model, draw = models(name), random.Random(0)
    torch.manual_seed(0)
    inputs, prompts = inputs_of(name, images, [5, 4], draw)
    options = {"max_new_tokens": 12, "output_logits": True, "return_dict_in_generate": True, "do_sample": sampled}
    options |= {"pad_token_id": 0, "eos_token_id": list(range(6, 14)), "temperature": 1.0 if sampled else None}

    def generate():
        torch.manual_seed(3)
        return model.generate(**inputs, **options)

    expected = generate()
    width = inputs["input_ids"].shape[1]
    ran = expected.sequences[:, width:] != 0
    if sampled:
        assert len(set(ran.sum(1).tolist())) > 2  # rows end at different times
    warnings, counts = [], []
    generator = PrefixSharingGenerator(warnings.append)
    for _ in range(2):  # with the trial, and after it
        with generator.generating(model, options["eos_token_id"], prompts):
            inner = model.register_forward_pre_hook(
                lambda _, args, kw: counts.append(len(kw["input_ids"])), with_kwargs=True
            )
            found = generate()
            inner.remove()
        assert torch.equal(found.sequences, expected.sequences)
        for place, (one, other) in enumerate(zip(found.logits, expected.logits, strict=True)):
            assert_close(one[ran[:, place]], other[ran[:, place]], atol=5e-5, rtol=1e-4)
    assert generator.shares is True
    assert warnings == []
    assert 2 in counts  # prompts
    if sampled:
        assert 2 < min(count for count in counts if count != 2) < 8
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_other_caches_are_not_shared(models):
    warnings, model = [], models("qwen3_next")
    generator = PrefixSharingGenerator(warnings.append)
    for _ in range(2):
        with generator.generating(model, [5], None):
            assert not model._forward_pre_hooks
    assert len(warnings) == 1
    assert warnings[0].startswith("sampling runs every prompt once per rollout: its cache has layers other than keys")


def test_a_failed_trial_is_not_shared(models):
    warnings, model = [], models("qwen3")
    torch.manual_seed(0)
    inputs, prompts = inputs_of("qwen3", 0, [2, 2], random.Random(1))
    swapped = SharedPrompts(prompts.firsts, [1 - owner for owner in prompts.owners], {})
    expected = model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=5)
    generator = PrefixSharingGenerator(warnings.append)
    for _ in range(2):
        with generator.generating(model, [5], swapped):
            found = model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=5)
        assert torch.equal(found, expected)
    (line,) = warnings
    assert "in a trial, numbers differed by" in line


def test_several_threads_give_the_same_gradient_each_time():
    """Bit-identical, for reproducible runs; at the size of the shipped policy, where threads share work."""
    model = AutoModelForImageTextToText.from_pretrained(policy_path())
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    torch.manual_seed(0)
    owners = torch.tensor([0, 1] * 8)  # threads that share rows among them share prompts
    ids = torch.cat([torch.randint(40, 60, (2, 120))[owners], torch.randint(40, 60, (16, 40))], dim=1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    tree = tree_of_batch(batch, 120)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = [evaluate(model, batch, 120, lambda model: shared(model, batch, 120, tree))[2] for _ in range(12)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
