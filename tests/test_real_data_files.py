import re

import pytest
from datasets import load_dataset
from PIL import Image as Pictures

from tests.support.real_data import FEATURES, completions_of, lines_of, load_copy

every_dataset = pytest.mark.parametrize("name", FEATURES)


@every_dataset
def test_every_row_has_correct_and_incorrect_completions(name):
    lines = list(lines_of(name))
    assert len(lines) == 60
    for line in lines:
        assert set(line) == {"row", "image_columns", "completions", "answer"}
        assert set(line["row"]) | set(line["image_columns"]) == set(FEATURES[name])
        assert 2 <= len(line["completions"]) <= 4
        assert {completion["correct"] for completion in line["completions"]} == {True, False}
        texts = [completion["text"] for completion in line["completions"]]
        assert len(set(texts)) == len(texts)
    assert [i for i, _, _ in completions_of(name)] == [i for i in range(60) for _ in lines[i]["completions"]]


@every_dataset
def test_rows_are_distinct(name):
    questions = {
        line["row"].get("problem") or line["row"].get("question") or line["row"]["prompt"] for line in lines_of(name)
    }
    assert len(questions) == 60


@every_dataset
def test_copies_load_with_the_features_of_the_hub(name, tmp_path):
    path = load_copy(name, tmp_path)
    data = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.features == FEATURES[name]
    assert list(data.features) == list(FEATURES[name])
    for row, line in zip(data, lines_of(name), strict=True):
        assert {column: row[column] for column in line["row"]} == line["row"]
        for column, count in line["image_columns"].items():
            pictures = row[column] if isinstance(row[column], list) else [row[column]]
            assert [picture.size for picture in pictures] == [(96, 64)] * count
            assert all(isinstance(picture, Pictures.Image) for picture in pictures)


def test_copies_are_the_same_every_time(tmp_path):
    (tmp_path / "again").mkdir()
    first, second = load_copy("wemath", tmp_path), load_copy("wemath", tmp_path / "again")
    assert first.read_bytes() == second.read_bytes()


def test_answers_are_those_of_the_rows():
    column = {"geometry3k": "answer", "dapo_math": "solution", "deepmath": "final_answer"}
    for name in (*column, "mathvision", "wemath"):
        for line in lines_of(name):
            assert line["row"][column.get(name, "answer")] == line["answer"]
    for line in lines_of("math"):
        assert f"\\boxed{{{line['answer']}}}" in line["row"]["solution"]
    for line in lines_of("dapo_math"):
        assert line["row"]["reward_model"]["ground_truth"] == line["answer"]
        assert re.fullmatch(r"-?\d+", line["answer"])
        assert line["row"]["prompt"] in line["row"]["source_prompt"][0]["content"]


def test_answers_of_choices_are_letters_of_the_options():
    for line in lines_of("mathvision"):
        if line["row"]["options"]:
            assert line["answer"] in "ABCDE"[: len(line["row"]["options"])]
    for line in lines_of("wemath"):
        assert re.search(rf"(^|[;.\s]){line['answer']}\.", line["row"]["option"])
