"""Scoring with hints: token ids of hinted prompts, requests and log-probs; the model is left unchanged."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from trl.data_utils import prepare_multimodal_messages
from trl.trainer.utils import add_fused_lm_head

from cepo import policy_path
from cepo.references.groups import Group, Rollout
from cepo.references.hints import DEFAULT_HINT_TEMPLATE, add_hint, fill_hint
from cepo.scoring.forward import FullForward, ScoringModel, evaluating
from cepo.scoring.pipeline import Pipeline
from cepo.scoring.prompts import PromptEncoder
from cepo.scoring.requests import Prompt

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
    return PromptEncoder(processor)


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


def group_of(messages, *completions):
    return Group(messages, "", [Rollout(None, 0.0, None, ids=tuple(ids)) for ids in completions])


def pipeline_of(model, encoder, max_tokens=10_000):
    return Pipeline(encoder, FullForward(ScoringModel(model, model), max_tokens).log_probs)


def test_the_hint_ends_the_last_user_turn(processor, encoder, messages, prompts):
    ids = encoder.with_hint(prompts[0], messages[0], HINT)
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
def test_grafted_ids_are_those_of_the_whole_conversation(processor, encoder, messages, prompts, template, monkeypatch):
    """Tokenizing only the text gives the processor's token ids, also where tokens merge at the hint."""
    monkeypatch.setattr(PromptEncoder, "_encoded", lambda *args: pytest.fail("images were processed again"))
    for prompt, conversation in zip(prompts, messages, strict=True):
        hint = fill_hint(template, ANSWER)
        expected = encoded(processor, add_hint(conversation, hint)).ids
        assert encoder.with_hint(prompt, conversation, hint) == expected


@pytest.mark.parametrize("template", HINTS)
def test_grafted_ids_of_text(text_figures, text_model_path, template):
    tokenizer = AutoTokenizer.from_pretrained(text_model_path)

    def ids(conversation):
        return tuple(tokenizer.apply_chat_template(conversation, add_generation_prompt=True)["input_ids"])

    plain = text_figures[0]["prompt"]
    hint = fill_hint(template, ANSWER)
    assert PromptEncoder(tokenizer).with_hint(Prompt(ids(plain)), plain, hint) == ids(add_hint(plain, hint))


def test_the_processor_makes_the_ids_if_grafting_fails(processor, encoder, messages, prompts):
    """A prompt with one more token than its text."""
    odd = Prompt((*prompts[0].ids, 7), prompts[0].images, prompts[0].token_types, prompts[0].images_end)
    assert encoder.with_hint(odd, messages[0], HINT) == encoded(processor, add_hint(messages[0], HINT)).ids


def test_an_image_after_the_hint_is_refused(encoder, messages, prompts):
    late = Prompt(prompts[0].ids, prompts[0].images, prompts[0].token_types, len(prompts[0].ids))
    with pytest.raises(ValueError, match="image"):
        encoder.with_hint(late, messages[0], HINT)


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


def test_log_probs_belong_to_their_rollout_and_context(model, processor, encoder, messages, prompts):
    ids = [processor.tokenizer(text).input_ids for text in TEXTS]
    groups = [group_of(conversation, tokens) for conversation, tokens in zip(messages, ids, strict=True)]
    contexts = [[HINT], [HINT, None], [HINT]]
    with evaluating(model):
        together = pipeline_of(model, encoder).score(contexts, groups, prompts)
        for row, group in enumerate(groups):
            (alone,) = pipeline_of(model, encoder, max_tokens=1).score([[HINT]], [group], [prompts[row]])
            assert_close(together[row][HINT], alone[HINT], atol=1e-5, rtol=1e-4)
    assert [list(one) for one in together] == [[HINT], [HINT, None], [HINT]]
    assert all(len(one[HINT]) == len(tokens) for one, tokens in zip(together, ids, strict=True))
    assert all((one[HINT] < 0).all() for one in together)
    assert not torch.allclose(together[1][HINT], together[1][None])


def test_scoring_uses_the_image(model, processor, encoder, figures):
    row = figures[0]
    text = f"Next, {row['start']} and {row['labels'][0]} leave {row['angles'][0]} for a."
    changed = row["image"].copy()
    changed.paste("white", (0, 0, changed.width, changed.height))
    seen, unseen = (
        encoded(processor, prepare_multimodal_messages(row["prompt"], images=[image]))
        for image in (row["image"], changed)
    )
    assert seen.ids == unseen.ids
    groups = [group_of([], processor.tokenizer(text).input_ids)] * 2
    with evaluating(model):
        result = pipeline_of(model, encoder).student_log_probs(groups, [seen, unseen])
    assert not torch.allclose(result[0], result[1])


def test_the_completion_tokens_are_the_sampled_ones(processor, prompts, requests):
    """Completions are not decoded and encoded again."""
    tokenizer = processor.tokenizer
    whole = tokenizer("parallel").input_ids
    pieces = [i for letter in "parallel" for i in tokenizer(letter).input_ids]
    assert tokenizer.decode(whole) == tokenizer.decode(pieces)
    numbered(requests).student_log_probs([group_of([], pieces)], prompts)
    assert [request.completion for request in requests] == [tuple(pieces)]


@pytest.fixture
def requests():
    return []


def numbered(requests):
    """A pipeline that records its requests and returns their number, negated, at every token."""

    def log_probs(prompts, some):
        requests.extend(some)
        return [torch.full((len(request.completion),), -float(i)) for i, request in enumerate(some, 1)]

    return Pipeline(None, log_probs)


def test_equal_rollouts_are_scored_once(requests):
    prompts = [Prompt((1, 2, 3)), Prompt((1, 2, 3))]
    groups = [group_of([], (7, 8, 9), (7, 8, 9)), group_of([], (7, 8, 9, 5))]
    result = numbered(requests).student_log_probs(groups, prompts)
    assert [(request.prompt, request.completion) for request in requests] == [(0, (7, 8, 9)), (1, (7, 8, 9, 5))]
    assert result.tolist() == [[-1, -1, -1, 0], [-1, -1, -1, 0], [-2, -2, -2, -2]]


def test_a_rollout_without_tokens_is_not_scored(requests):
    assert numbered(requests).student_log_probs([group_of([], ())], [Prompt((1, 2))]).tolist() == [[0.0]]
    assert requests == []


def test_tokens_after_the_last_trained_one_are_not_scored(requests):
    calls_a_tool = Rollout("", 0.0, None, ids=(7, 8, 9, 5), trained=(True, False, True, False))
    truncated = Rollout("", 0.0, None, ids=(7, 8), trained=(False, False))
    group = Group([], "", [calls_a_tool, truncated])
    result = numbered(requests).student_log_probs([group], [Prompt((1, 2))])
    assert [request.completion for request in requests] == [(7, 8, 9)]
    assert result.tolist() == [[-1, -1, -1, 0], [0, 0, 0, 0]]


def test_known_student_log_probs_are_not_scored_again(requests):
    student = torch.tensor([[-0.5, -0.25, 9.0]])
    (found,) = numbered(requests).score([[None]], [group_of([], (7, 8))], [Prompt((1, 2))], student)
    assert found[None].tolist() == [-0.5, -0.25]
    assert requests == []


def test_teachers_leave_every_module_in_its_mode(model):
    model.train()
    model.lm_head.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.is_grad_enabled()
    model.eval()
