"""Prompts, scores and modes of teachers."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from trl.data_utils import prepare_multimodal_messages
from trl.trainer.utils import add_fused_lm_head

from cepo import policy_path
from cepo.references.hints import DEFAULT_HINT_TEMPLATE, add_hint, fill_hint
from cepo.scoring.forward import FullForward, ScoringModel
from cepo.scoring.prompts import PromptEncoder
from cepo.scoring.requests import Prompt
from cepo.scoring.score import Completions, evaluating, score

ANSWER = "(62, 75, 43)"
HINT = fill_hint(DEFAULT_HINT_TEMPLATE, ANSWER)


@pytest.fixture(scope="module")
def model():
    model = AutoModelForImageTextToText.from_pretrained(policy_path()).eval()
    add_fused_lm_head(model)
    return model


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(policy_path(), padding_side="left")


@pytest.fixture(scope="module")
def encoder(processor):
    return PromptEncoder(processor, is_vlm=True)


@pytest.fixture(scope="module")
def messages(figures):
    return [prepare_multimodal_messages(row["prompt"], images=[row["image"]]) for row in figures.select(range(3))]


def encoded(processor, conversation):
    """The ids that the processor makes of a conversation."""
    fields = processor.apply_chat_template(
        [conversation], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    types = fields["mm_token_type_ids"][0]
    images = {name: fields[name] for name in ("pixel_values", "image_grid_thw")}
    return Prompt(
        tuple(fields["input_ids"][0].tolist()), images, {"mm_token_type_ids": types}, int(types.nonzero().max()) + 1
    )


@pytest.fixture(scope="module")
def prompts(processor, messages):
    return [encoded(processor, conversation) for conversation in messages]


TEXTS = ["Next, 62 and 43 leave 75 for a.", "So the angles are", "The lines are parallel. Then 50 and 61 leave 69."]


def rollouts_of(processor, texts, pad_to=None, filler=0):
    ids = [processor.tokenizer(text).input_ids for text in texts]
    width = pad_to or max(map(len, ids))
    table = torch.tensor([row + [filler] * (width - len(row)) for row in ids])
    wanted = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in ids])
    return Completions(table, wanted, range(len(texts)))


def test_the_hint_ends_the_last_user_turn(processor, encoder, messages, prompts):
    ids = encoder.with_hint(prompts[0], messages[0], add_hint(messages[0], HINT))
    text = processor.tokenizer.decode(ids)
    hint = DEFAULT_HINT_TEMPLATE.replace("{answer}", ANSWER)
    assert text.endswith(f"{hint}<|im_end|>\n<|im_start|>assistant\n")
    assert processor.tokenizer.decode(prompts[0].ids) == text.replace(hint, "")
    assert messages[0][-1]["content"][-1]["text"].find(hint) == -1  # the student's prompt is untouched


HINTS = [
    DEFAULT_HINT_TEMPLATE,
    "{answer}",
    "5{answer}5",
    " The answer: {answer} ",
    "\n{answer}\n\n",
    "<|im_end|>{answer}",
]


@pytest.mark.parametrize("template", HINTS)
def test_grafted_ids_are_those_of_the_conversation(processor, encoder, messages, prompts, template, monkeypatch):
    """Text tokenized without images, then grafted, whatever merges at the seam."""
    monkeypatch.setattr(PromptEncoder, "_encoded", lambda *args: pytest.fail("images were processed again"))
    for prompt, conversation in zip(prompts, messages, strict=True):
        hinted = add_hint(conversation, fill_hint(template, ANSWER))
        assert encoder.with_hint(prompt, conversation, hinted) == encoded(processor, hinted).ids


@pytest.mark.parametrize("template", HINTS)
def test_grafted_ids_of_text(text_figures, text_model_path, template):
    tokenizer = AutoTokenizer.from_pretrained(text_model_path)

    def ids(conversation):
        return tuple(tokenizer.apply_chat_template(conversation, add_generation_prompt=True)["input_ids"])

    plain = text_figures[0]["prompt"]
    hinted = add_hint(plain, fill_hint(template, ANSWER))
    assert PromptEncoder(tokenizer, is_vlm=False).with_hint(Prompt(ids(plain)), plain, hinted) == ids(hinted)


def test_the_processor_makes_the_ids_if_grafting_fails(processor, encoder, messages, prompts):
    """A prompt with one more token than its text."""
    hinted = add_hint(messages[0], HINT)
    odd = Prompt((*prompts[0].ids, 7), prompts[0].images, prompts[0].token_types, prompts[0].images_end)
    assert encoder.with_hint(odd, messages[0], hinted) == encoded(processor, hinted).ids


def test_an_image_after_the_hint_is_refused(encoder, messages, prompts):
    late = Prompt(prompts[0].ids, prompts[0].images, prompts[0].token_types, len(prompts[0].ids))
    with pytest.raises(ValueError, match="image"):
        encoder.with_hint(late, messages[0], add_hint(messages[0], HINT))


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
    hinted = add_hint(messages, fill_hint(" Hint: {answer}!", "r{0}%"))
    assert hinted[:-1] == messages[:-1]
    content, before = hinted[-1]["content"], messages[-1]["content"]
    if isinstance(before, str):
        assert content == before + " Hint: r{0}%!"
    else:
        assert content == [*before[:-1], {"type": "text", "text": "Question Hint: r{0}%!"}]


@pytest.mark.parametrize(
    ("messages", "template", "named"),
    [([{"role": "system", "content": "x"}], DEFAULT_HINT_TEMPLATE, "user turn"), ([], "no placeholder", "answer")],
)
def test_a_hint_that_cannot_be_placed_is_refused(messages, template, named):
    with pytest.raises(ValueError, match=named):
        add_hint(messages, fill_hint(template, ANSWER))


def test_scores_are_indexed_by_context_and_rollout(model, processor, encoder, messages, prompts):
    hinted = [
        encoder.with_hint(prompt, conversation, add_hint(conversation, HINT))
        for prompt, conversation in zip(prompts, messages, strict=True)
    ]
    contexts = [hinted, [None, prompts[1].ids, None]]
    rollouts = rollouts_of(processor, TEXTS, pad_to=30)
    with evaluating(model):
        together = score(contexts, rollouts, prompts, FullForward(ScoringModel(model, model), 10_000).log_probs)
        for row, context in enumerate(hinted):
            one = Completions(rollouts.completion_ids[[row]], rollouts.wanted[[row]], [0])
            alone = score([[context]], one, [prompts[row]], FullForward(ScoringModel(model, model), 1).log_probs)
            assert_close(together[0, row], alone[0, 0], atol=1e-5, rtol=1e-4)
    assert together.shape == (2, 3, 30)
    assert together[1, [0, 2]].isnan().all()
    assert (together[0][rollouts.wanted] < 0).all()
    assert (together[0][~rollouts.wanted] == 0).all()
    assert not torch.allclose(together[0, 1], together[1, 1])


def test_padding_content_never_changes_a_score(model, processor, prompts):
    contexts = [[prompt.ids for prompt in prompts]]
    read = FullForward(ScoringModel(model, model), 10_000).log_probs
    with evaluating(model):
        plain = score(contexts, rollouts_of(processor, TEXTS, 30), prompts, read)
        garbage = score(contexts, rollouts_of(processor, TEXTS, 30, filler=40), prompts, read)
    assert torch.equal(plain, garbage)


def test_the_teacher_sees_the_image(model, processor, figures):
    row = figures[0]
    text = f"Next, {row['start']} and {row['labels'][0]} leave {row['angles'][0]} for a."
    changed = row["image"].copy()
    changed.paste("white", (0, 0, changed.width, changed.height))
    seen, unseen = (
        encoded(processor, prepare_multimodal_messages(row["prompt"], images=[image]))
        for image in (row["image"], changed)
    )
    assert seen.ids == unseen.ids
    with evaluating(model):
        result = score(
            [[seen.ids, unseen.ids]],
            rollouts_of(processor, [text, text]),
            [seen, unseen],
            FullForward(ScoringModel(model, model), 10_000).log_probs,
        )
    assert not torch.allclose(result[0, 0], result[0, 1])


def test_the_completion_tokens_are_the_sampled_ones(processor, prompts):
    """Two tokenizations of one text have different scores."""
    tokenizer = processor.tokenizer
    whole = tokenizer("parallel").input_ids
    pieces = [i for letter in "parallel" for i in tokenizer(letter).input_ids]
    assert tokenizer.decode(whole) == tokenizer.decode(pieces)
    seen = []

    def read(prompts, requests):
        seen.extend(requests)
        return [torch.zeros(len(request.completion)) for request in requests]

    rollouts = Completions(torch.tensor([pieces]), torch.ones(1, len(pieces), dtype=torch.bool), [0])
    score([[prompts[0].ids]], rollouts, prompts, read)
    assert [request.completion for request in seen] == [tuple(pieces)]


def test_equal_rollouts_are_scored_once_up_to_the_last_wanted_token():
    prompts = [Prompt((1, 2, 3)), Prompt((1, 2, 3))]
    ids = torch.tensor([[7, 8, 9, 5], [7, 8, 9, 6], [7, 8, 9, 5]])
    wanted = torch.tensor([[True, False, True, False]] * 3)
    read = []

    def count(prompts, requests):
        read.extend(requests)
        return [torch.full((len(request.completion),), -float(i)) for i, request in enumerate(requests, 1)]

    context = (1, 2, 4, 3)
    result = score([[context, context, context], [None] * 3], Completions(ids, wanted, [0, 0, 1]), prompts, count)
    assert [(request.prompt, request.completion) for request in read] == [(0, (7, 8, 9)), (1, (7, 8, 9))]
    assert result[0].tolist() == [[-1, -1, -1, 0], [-1, -1, -1, 0], [-2, -2, -2, 0]]
    assert result[1].isnan().all()


def test_a_rollout_without_a_wanted_token_is_not_scored():
    result = score(
        [[(1, 2)]], Completions(torch.tensor([[7, 8]]), torch.zeros(1, 2, dtype=torch.bool), [0]), [], _nothing
    )
    assert result.tolist() == [[[0.0, 0.0]]]


def _nothing(prompts, requests):
    assert not requests
    return []


def test_every_module_keeps_its_mode(model):
    model.train()
    model.lm_head.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.is_grad_enabled()
    model.eval()
