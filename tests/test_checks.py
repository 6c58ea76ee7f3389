"""Checks of data sets before training name the column and the row."""

import json

import pytest
from datasets import Dataset, Image, IterableDataset, Sequence

from cepo.data.checks import DatasetError, check_dataset
from cepo.data.errors import LoadingError
from cepo.data.loading import load_split

PROMPT = [{"role": "user", "content": "How many?"}]


def rows(**columns):
    return Dataset.from_dict({"prompt": [PROMPT, PROMPT, PROMPT], "solution": ["1", "2", "3"], **columns})


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Dataset.from_dict({"prompt": [PROMPT], "answer": ["1"]}), "no column 'solution'.*'prompt', 'answer'"),
        (Dataset.from_dict({"question": ["x"], "solution": ["1"]}), "no column 'prompt'.*'question'"),
        (rows(solution=["1", "", "3"]), "row 1 .*'solution' is empty"),
        (rows(solution=["1", "2", None]), "row 2 .*'solution' is empty"),
        (rows(solution=["1", "  ", "3"]), "row 1 .*'solution' is empty"),
        (rows(solution=["1", r"so \boxed{}", "3"]), "row 1 .*'solution' has no answer"),
        (rows(solution=["1", "2", "####"]), "row 2 .*'solution' has no answer"),
        (rows(solution=[1, 2, 3]), "row 0 .*'solution' is not text but 1"),
        (rows(prompt=["a", "b", "c"]), "row 0 .*plain text"),
        (rows(prompt=[[{"role": "system", "content": "x"}]] * 3), "row 0 .*no user turn"),
    ],
)
def test_errors_name_column_and_row(dataset, message):
    with pytest.raises(DatasetError, match=message):
        check_dataset(dataset, needs_solution=True)


@pytest.mark.parametrize("name", ["prompts", "completions", "self", "trainer_state", "log_extra"])
def test_columns_with_names_of_reward_arguments_are_refused(name):
    with pytest.raises(DatasetError, match=f"has a column '{name}', which TRL passes to reward functions"):
        check_dataset(rows(**{name: ["a", "b", "c"]}), needs_solution=False)


def test_text_that_is_not_utf8_is_refused_by_row(tmp_path):
    lines = [b'{"prompt": "one", "solution": "1"}', b'{"prompt": "t\xffo", "solution": "2"}']
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    data = load_split(str(tmp_path / "rows.jsonl"), "train")
    with pytest.raises(DatasetError, match="row 1 of the training set: 'prompt' is not UTF-8"):
        check_dataset(data, needs_solution=False)
    check_dataset(data.select([0]), needs_solution=False)


def test_long_rows_byte_order_marks_and_nul(tmp_path):
    """Rows longer than the reader's block, a byte order mark at the beginning, and null characters."""
    rows = [{"prompt": "a\0b", "solution": "1"}, {"prompt": "x" * 12_000_000, "solution": "y" * 1_000_000}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    data = load_split(str(tmp_path / "rows.jsonl"), "train")
    assert list(data) == rows
    check_dataset(data, needs_solution=False)
    twice = tmp_path / "twice.jsonl"
    twice.write_text('{"prompt": "one", "solution": "1", "solution": "2"}')
    with pytest.raises(LoadingError, match=r"solution.* was specified twice"):
        load_split(str(twice), "train")


def test_plain_prompts_without_solutions():
    check_dataset(Dataset.from_dict({"prompt": ["one", "two"]}), needs_solution=False)


@pytest.mark.parametrize("several", [False, True])
def test_missing_image_files_are_refused_by_row(tmp_path, figures, several):
    there = tmp_path / "there.png"
    figures[0]["image"].save(there)
    paths = [str(there), str(there), str(tmp_path / "gone.png")]
    if several:
        data = rows(images=[[path] for path in paths]).cast_column("images", Sequence(Image()))
    else:
        data = rows(image=paths).cast_column("image", Image())
    with pytest.raises(DatasetError, match=r"row 2 .*gone\.png"):
        check_dataset(data, needs_solution=True)
    check_dataset(data.select([0, 1]), needs_solution=True)


def test_first_rows_of_a_stream_are_checked():
    def bad():
        yield {"prompt": PROMPT, "solution": "1"}
        yield {"prompt": PROMPT, "solution": ""}

    with pytest.raises(DatasetError, match="row 1"):
        check_dataset(IterableDataset.from_generator(bad), needs_solution=True)


def test_figures_task_passes(figures):
    check_dataset(figures, needs_solution=True)
