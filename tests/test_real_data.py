"""From the file to the token ids, on copies of public datasets, stage by stage.

file -> columns -> prompt -> verdict -> r+ and r- -> hint -> token ids
"""

import json
import re

import pytest
from trl.rewards import accuracy_reward

from cepo import answer_reward, choose_references, final_answer, reference_answer, same_answer
from cepo.data.checks import check_dataset, check_verifier
from cepo.data.formats import DatasetOptions
from cepo.data.loading import load_split
from cepo.data.models import load_processor
from cepo.data.rewards import prepared
from cepo.data.sampling import conversation_of
from cepo.references.equality import accepted_by_any_grader
from cepo.references.groups import Rollout
from cepo.references.hints import DEFAULT_HINT_TEMPLATE, fill_hint
from cepo.scoring.prompts import PromptEncoder
from cepo.tasks.figures import policy_path
from tests.support.real_data import FEATURES, FOLDER, lines_of, load_copy

IMAGES = {"geometry3k": 1, "mathvision": 1, "wemath": 1}
QUESTION = {"geometry3k": "problem", "math": "problem", "dapo_math": "prompt", "deepmath": "question"}
NOTES = {
    "mathvision": r"'answer' is parsed as letters; \d+ rows have no choices",
}


@pytest.fixture(scope="module")
def processor():
    return load_processor(policy_path())


@pytest.fixture(scope="module", params=sorted(FEATURES))
def copy(request, tmp_path_factory):
    path = load_copy(request.param, tmp_path_factory.mktemp(request.param))
    notes = []
    data = load_split(str(path), "train", options=DatasetOptions(dataset_format=request.param), notes=notes)
    return request.param, data, list(lines_of(request.param)), notes


def test_columns_prompts_and_references(copy):
    name, data, lines, notes = copy
    check_dataset(data, needs_solution=True)
    assert len(data) == 60
    assert [bool(re.search(NOTES[name], note)) for note in notes] == [True] if name in NOTES else not notes
    for row, line in zip(data, lines, strict=True):
        (turn,) = row["prompt"]
        parts = turn["content"] if isinstance(turn["content"], list) else [{"type": "text", "text": turn["content"]}]
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        assert [part["type"] for part in parts].count("image") == IMAGES.get(name, 0) == len(row.get("images") or [])
        assert "<image" not in text
        assert text.endswith("put your final answer in \\boxed{}.")
        question = line["row"][QUESTION.get(name, "question")]
        for piece in re.split(r"<image\d?>", question):
            assert piece.strip() in text
        for choice in line["row"].get("options") or [line["row"].get("option") or ""]:
            assert choice in text
        assert same_answer(reference_answer(row["solution"]), line["answer"]), (row["solution"], line["answer"])


def test_verdicts(copy):
    """Of all labeled completions but those that no grader can judge without the question."""
    _name, data, lines, _ = copy
    mismatched, limits, seen = [], 0, 0
    for row, line in zip(data, lines, strict=True):
        for completion in line["completions"]:
            (verdict,) = answer_reward([[{"role": "assistant", "content": completion["text"]}]], [row["solution"]])
            seen += 1
            if completion.get("limit"):
                limits += 1
            elif (verdict == 1.0) != completion["correct"]:
                mismatched.append((row["solution"], completion["text"]))
    assert not mismatched
    assert limits <= 0.04 * seen


def test_verifiers_parse_the_solutions(copy):
    _name, data, _, _ = copy
    assert check_verifier(answer_reward, data) == ("answer_reward parses 60 of 60 solutions", 0)
    line, unreadable = check_verifier(accuracy_reward, data)
    assert line.startswith(f"accuracy_reward parses {60 - unreadable} of 60 solutions")
    assert unreadable <= 6


def test_prepared_accuracy_reward_parses_the_solutions(copy):
    """Otherwise it parses `5 \\sqrt { 7 }` as 7."""
    name, data, _, _ = copy
    solutions = data["solution"]
    boxed = [[{"role": "assistant", "content": f"So \\boxed{{{reference_answer(one)}}}."}] for one in solutions]
    found = prepared(accuracy_reward)(completions=boxed, solution=list(solutions))
    assert sum(verdict == 1.0 for verdict in found) >= 54
    if name == "geometry3k":
        as_it_is = accuracy_reward(boxed, list(solutions))
        assert sum(verdict == 1.0 for verdict in as_it_is) < 50


def test_references_hints_and_token_ids(copy, processor):
    _name, data, lines, _ = copy
    encoder = PromptEncoder(processor)
    with_negatives = 0
    for place in range(0, 60, 5):
        row, line = data[place], lines[place]
        attempts = [
            Rollout(final_answer(one["text"]), float(one["correct"]), one["correct"], one["text"])
            for one in line["completions"]
        ]
        references = choose_references(attempts, row["solution"])
        messages = conversation_of(row, processor)
        prompt = encoder.prompt(messages)
        for one in references:
            assert same_answer(one.positive, line["answer"])
            for negative in one.negatives:
                assert not accepted_by_any_grader(negative, one.positive)
            with_negatives += bool(one.negatives)
            for answer in (one.positive, *one.negatives):
                hint = fill_hint(DEFAULT_HINT_TEMPLATE, answer)
                ids = encoder.with_hint(prompt, messages, hint)
                text = processor.tokenizer.decode(ids)
                assert text.count(hint) == 1
                assert text.index(hint) > text.index("put your final answer in")
                assert text.endswith(processor.tokenizer.decode(prompt.ids)[-20:])
                image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
                assert ids.count(image) == prompt.ids.count(image)
    assert with_negatives > 12


@pytest.mark.parametrize("file", ["answers", "answers_unseen"])
def test_answer_reward_agrees_with_the_labels(file):
    """docs/graders.md has the table. The grader was developed on the first file only."""
    rows = [json.loads(line) for line in (FOLDER / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()]
    completions = [[{"role": "assistant", "content": row["completion"]}] for row in rows]
    verdicts = answer_reward(completions, [row["solution"] for row in rows])
    mismatched = [row for row, verdict in zip(rows, verdicts, strict=True) if (verdict == 1.0) != row["correct"]]
    assert len(rows) >= 300
    assert len(mismatched) <= 0.01 * len(rows), mismatched
