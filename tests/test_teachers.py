"""Teachers: what they read, what they do not, and that they leave the model as it was."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.data_utils import prepare_multimodal_messages
from trl.trainer.utils import add_fused_lm_head

from cepo import policy_path
from cepo.hints import DEFAULT_HINT_TEMPLATE, add_hint
from cepo.teachers import PromptEncoder, Rollouts, evaluating, score

ANSWER = "(62, 75, 43)"


@pytest.fixture(scope="module")
def policy():
    model = AutoModelForImageTextToText.from_pretrained(policy_path()).eval()
    add_fused_lm_head(model)
    processor = AutoProcessor.from_pretrained(policy_path(), padding_side="left")
    return model, processor


@pytest.fixture(scope="module")
def prompts(figures):
    return [prepare_multimodal_messages(row["prompt"], images=[row["image"]]) for row in figures.select(range(3))]


def log_probs_of(model):
    """The model's log-probs the plain way: all logits, then the sampled tokens."""

    @torch.no_grad()
    def log_probs(input_ids, attention_mask, logits_to_keep, num_images=None, **fields):
        logits = model(input_ids=input_ids, attention_mask=attention_mask, **fields).logits
        kept = logits[:, -logits_to_keep - 1 : -1].log_softmax(-1)
        return kept.gather(-1, input_ids[:, -logits_to_keep:].unsqueeze(-1)).squeeze(-1)

    return log_probs


def scored(policy, contexts, rollouts, batch_size=8, **options):
    model, processor = policy
    return score(
        contexts,
        rollouts,
        encoder=PromptEncoder(processor, is_vlm=True),
        log_probs=log_probs_of(model),
        batch_size=batch_size,
        **options,
    )


def rollouts_of(processor, texts, pad_to=None, filler=None):
    tokenizer = processor.tokenizer
    ids = [tokenizer(text).input_ids for text in texts]
    width = pad_to or max(map(len, ids))
    filler = tokenizer.pad_token_id if filler is None else filler
    table = torch.tensor([row + [filler] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    return Rollouts(table, mask)


TEXTS = ["Next, 62 and 43 leave 75 for a.", "So the angles are", "The lines are parallel. Then 50 and 61 leave 69."]


def test_the_hint_closes_the_last_user_turn_before_the_assistant_header(policy, prompts):
    _, processor = policy
    hinted = add_hint(prompts[0], ANSWER)
    (ids,) = PromptEncoder(processor, is_vlm=True).encode([hinted])["input_ids"]
    text = processor.tokenizer.decode(ids)
    hint = DEFAULT_HINT_TEMPLATE.replace("{answer}", ANSWER)
    assert text.endswith(f"{hint}<|im_end|>\n<|im_start|>assistant\n")
    (plain,) = PromptEncoder(processor, is_vlm=True).encode([prompts[0]])["input_ids"]
    assert processor.tokenizer.decode(plain) == text.replace(hint, "")
    assert prompts[0][-1]["content"][-1]["text"].find(hint) == -1  # the student's prompt is untouched


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "Question"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Question"}],
        [
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "Two"},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Question"}]},
        ],
    ],
)
def test_the_hint_goes_to_the_last_user_turn_of_any_conversation(messages):
    hinted = add_hint(messages, "r{0}%", " Hint: {answer}!")
    assert hinted[:-1] == messages[:-1]
    content, before = hinted[-1]["content"], messages[-1]["content"]
    if isinstance(before, str):
        assert content == before + " Hint: r{0}%!"
    else:
        assert content == [*before, {"type": "text", "text": " Hint: r{0}%!"}]


@pytest.mark.parametrize(
    ("messages", "template", "named"),
    [([{"role": "system", "content": "x"}], DEFAULT_HINT_TEMPLATE, "user turn"), ([], "no placeholder", "answer")],
)
def test_a_hint_that_cannot_be_placed_is_refused(messages, template, named):
    with pytest.raises(ValueError, match=named):
        add_hint(messages, ANSWER, template)


def test_scores_are_those_of_each_rollout_read_alone(policy, prompts):
    """Batches, left padding of prompts, right padding of completions and batch size change nothing."""
    _, processor = policy
    rollouts = rollouts_of(processor, TEXTS)
    contexts = [[add_hint(prompt, ANSWER) for prompt in prompts], [None, prompts[1], None]]
    together = scored(policy, contexts, rollouts)
    assert_close(scored(policy, contexts, rollouts, batch_size=1), together, equal_nan=True)
    for b, (prompt, text) in enumerate(zip(prompts, TEXTS, strict=True)):
        alone = scored(policy, [[add_hint(prompt, ANSWER)]], rollouts_of(processor, [text]))
        length = alone.shape[-1]
        assert_close(together[0, b, :length], alone[0, 0], atol=1e-5, rtol=1e-4)
    assert together[1, [0, 2]].isnan().all()
    assert together[1, 1].isfinite().any()


def test_padding_content_never_changes_a_score(policy, prompts):
    _, processor = policy
    contexts = [[add_hint(prompt, ANSWER) for prompt in prompts]]
    rollouts = rollouts_of(processor, TEXTS, pad_to=30)
    garbage = rollouts_of(processor, TEXTS, pad_to=30, filler=processor.tokenizer.convert_tokens_to_ids("5"))
    mask = rollouts.completion_mask.bool().unsqueeze(0)
    assert not torch.equal(rollouts.completion_ids, garbage.completion_ids)
    assert torch.equal(scored(policy, contexts, rollouts)[mask], scored(policy, contexts, garbage)[mask])


def test_the_teacher_sees_the_image(policy, figures):
    _, processor = policy
    row = figures[0]
    text = f"Next, {row['start']} and {row['labels'][0]} leave {row['angles'][0]} for a."
    rollouts = rollouts_of(processor, [text])
    seen = prepare_multimodal_messages(row["prompt"], images=[row["image"]])
    changed = row["image"].copy()
    changed.paste("white", (0, 0, changed.width, changed.height))
    unseen = prepare_multimodal_messages(row["prompt"], images=[changed])
    result = scored(policy, [[add_hint(seen, ANSWER)], [add_hint(unseen, ANSWER)]], _twice(rollouts, 1))
    assert not torch.allclose(result[0], result[1])


def _twice(rollouts, times):
    return Rollouts(rollouts.completion_ids.repeat(times, 1), rollouts.completion_mask.repeat(times, 1))


def test_the_completion_tokens_are_the_sampled_ones(policy, prompts):
    """Not decoded and encoded again: two tokenisations of one text get different scores."""
    _, processor = policy
    tokenizer = processor.tokenizer
    whole = tokenizer("parallel").input_ids
    pieces = [i for letter in "parallel" for i in tokenizer(letter).input_ids]
    assert tokenizer.decode(whole) == tokenizer.decode(pieces)
    seen = []

    def spy(input_ids, attention_mask, logits_to_keep, **fields):
        seen.append(input_ids[:, -logits_to_keep:].clone())
        return torch.zeros(input_ids.shape[0], logits_to_keep)

    rollouts = Rollouts(torch.tensor([pieces]), torch.ones(1, len(pieces), dtype=torch.long))
    score(
        [[add_hint(prompts[0], ANSWER)]],
        rollouts,
        encoder=PromptEncoder(processor, is_vlm=True),
        log_probs=spy,
        batch_size=1,
    )
    assert seen[0].tolist() == [pieces]


def test_every_process_makes_as_many_forward_calls(policy, prompts):
    calls = []

    def spy(input_ids, attention_mask, logits_to_keep, **fields):
        calls.append(input_ids.shape[0])
        return torch.zeros(input_ids.shape[0], logits_to_keep)

    _, processor = policy
    rollouts = rollouts_of(processor, TEXTS)
    for contexts in ([[None] * 3], [[prompts[0], None, prompts[2]]]):
        calls.clear()
        result = score(
            contexts,
            rollouts,
            encoder=PromptEncoder(processor, is_vlm=True),
            log_probs=spy,
            batch_size=1,
            equal_calls=lambda own: max(own, 3),
            spare=prompts[0],
        )
        assert len(calls) == 3
        assert result.isnan().all(-1).tolist() == [[prompt is None for prompt in contexts[0]]]


def test_teachers_leave_every_module_in_its_mode(policy):
    model, _ = policy
    model.train()
    model.lm_head.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.is_grad_enabled()
    model.eval()
