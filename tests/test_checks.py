"""Checks of datasets before training name the column and the row."""

import pytest
from datasets import Dataset, Image, IterableDataset, Sequence

from cepo.data.checks import DatasetError, check_dataset
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


def test_text_that_is_not_utf8_is_refused_by_row(tmp_path):
    lines = [b'{"prompt": "one", "solution": "1"}', b'{"prompt": "t\xffo", "solution": "2"}']
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    data = load_split(str(tmp_path / "rows.jsonl"), "train")
    with pytest.raises(DatasetError, match="row 1 of the training set: 'prompt' is not UTF-8"):
        check_dataset(data, needs_solution=False)
    check_dataset(data.select([0]), needs_solution=False)


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
