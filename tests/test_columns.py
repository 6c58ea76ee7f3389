"""Mapping of columns: small datasets with the columns of known ones, incomplete rows and invalid options."""

import json

import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Picture

from cepo import CEPOConfig, CEPOTrainer, cli, load_figures, policy_path
from cepo.data.checks import DatasetError, check_dataset, unused_images
from cepo.data.errors import LoadingError
from cepo.data.formats import FORMATS, DatasetOptions
from cepo.data.loading import load_split
from tests.support.training import half_right

PICTURES = [Picture.new("RGB", (32, 32), color) for color in ("red", "green", "blue")]
BOXED = "\n\nReason step by step, and put your final answer in \\boxed{}."


def saved(folder, rows, features=None):
    DatasetDict({"train": Dataset.from_list(rows, features=features)}).save_to_disk(folder)
    return str(folder)


def geometry(folder, rows):
    features = Features({"images": List(Image()), "problem": Value("string"), "answer": Value("string")})
    return saved(folder, rows, features)


def test_geometry3k(tmp_path):
    rows = [
        {"images": [PICTURES[0]], "problem": "<image>Find x.", "answer": "2 \\sqrt{3}"},
        {"images": PICTURES[1:], "problem": "In <image>, not in <image>: find y.", "answer": "4"},
    ]
    data = load_split(geometry(tmp_path / "d", rows), "train", options=DatasetOptions(dataset_format="geometry3k"))
    one, two = data
    assert set(data.column_names) == {"prompt", "solution", "images", "problem", "answer"}
    assert one["prompt"] == [
        {
            "role": "user",
            "content": [{"type": "image", "text": None}, {"type": "text", "text": "Find x." + BOXED}],
        }
    ]
    assert [part["type"] for part in two["prompt"][0]["content"]] == ["text", "image", "text", "image", "text"]
    assert two["prompt"][0]["content"][0]["text"] == "In "
    assert [one["solution"], two["solution"]] == ["2 \\sqrt{3}", "4"]
    assert [len(row["images"]) for row in data] == [1, 2]
    assert two["images"][0].getpixel((0, 0)) == (0, 128, 0)


@pytest.mark.parametrize(
    ("name", "row", "prompt", "solution"),
    [
        ("gsm8k", {"question": "2 + 3?", "answer": "It is 5.\n#### 5"}, "2 + 3?", "It is 5.\n#### 5"),
        (
            "math",
            {"problem": "$\\frac{1}{2}+{x}$", "level": "Level 1", "type": "Algebra", "solution": "So \\boxed{x}."},
            "$\\frac{1}{2}+{x}$",
            "So \\boxed{x}.",
        ),
        ("dapo_math", {"prompt": "How many?", "solution": "34", "data_source": "math_dapo"}, "How many?", "34"),
        ("deepmath", {"question": "Evaluate.", "final_answer": "0", "difficulty": 4.5}, "Evaluate.", "0"),
    ],
)
def test_text_sets(tmp_path, name, row, prompt, solution):
    data = load_split(saved(tmp_path / "d", [row]), "train", options=DatasetOptions(dataset_format=name))
    assert data[0]["prompt"] == [{"role": "user", "content": prompt + BOXED}]
    assert data[0]["solution"] == solution


def test_conversation_and_nested_solution(tmp_path):
    """As in verl's datasets."""
    row = {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}],
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"index": 0},
    }
    data = load_split(saved(tmp_path / "d", [row]), "train", options=DatasetOptions(dataset_format="verl"))
    assert data[0]["prompt"] == row["prompt"]
    assert data[0]["solution"] == "2"
    assert data[0]["extra_info"] == {"index": 0}


def test_formats_follow_from_names():
    assert DatasetOptions().format_of("hiyouga/geometry3k") == "geometry3k"
    assert DatasetOptions().format_of("openai/gsm8k") == "gsm8k"
    assert DatasetOptions().columns_of("my-org/mine") is None
    assert DatasetOptions(dataset_format="trl").columns_of("openai/gsm8k") is None
    names = [name for known in FORMATS.values() for name in known.names]
    assert len(names) == len(set(names))


QA = {"prompt": "q", "solution": "a"}
CHOICES = {"dataset_columns": {"prompt": "q", "solution": "a", "choices": "options"}}


@pytest.mark.parametrize(
    ("answer", "expected"), [(0, "A"), (3, "C"), ("cat", "A"), ("B", "B"), ("something else", "something else")]
)
def test_choices_are_lettered_and_so_is_the_answer(tmp_path, answer, expected):
    row = {"q": "Which?", "a": answer, "options": ["cat", "dog", "7"]}
    data = load_split(saved(tmp_path / "d", [row]), "train", options=DatasetOptions(**CHOICES))
    assert data[0]["prompt"][0]["content"] == "Which?\nA. cat\nB. dog\nC. 7"
    assert data[0]["solution"] == expected


ANIMALS = ["cat", "dog", "hen", "cow"]


@pytest.mark.parametrize(
    ("answers", "choices", "expected", "line"),
    [
        ([0, 3, 2], ANIMALS, "ADC", "positions from 0"),
        ([1, 4, 2], ANIMALS, "ADB", "positions from 1"),
        (["1", "4", "2"], ANIMALS, "ADB", "positions from 1"),
        ([1, 4, 2], [1, 2, 3, 4], "ADB", "texts of choices"),
        ([4, 1, 8], [1, 2, 4, 8], "CAD", "texts of choices"),
        (["dog", "Cat"], ["(A) cat", "(B) dog"], "B?", "texts of choices"),
        (["(b)", "a", "D."], ANIMALS, "BAD", "letters"),
    ],
)
def test_choice_keys_follow_from_the_whole_column(tmp_path, answers, choices, expected, line):
    rows = [{"q": "Which?", "a": f"{answer}", "options": [*map(str, choices)]} for answer in answers]
    notes = []
    data = load_split(saved(tmp_path / "d", rows), "train", options=DatasetOptions(**CHOICES), notes=notes)
    for row, answer, letter in zip(data, answers, expected, strict=True):
        assert row["solution"] == (f"{answer}" if letter == "?" else letter)
    (note,) = notes
    assert f"'a' is parsed as {line}" in note
    assert ("1 solutions match no choice" in note) == ("?" in expected)


@pytest.mark.parametrize("choices", [ANIMALS, ["4", "1", "3", "2"]])
def test_ambiguous_choice_keys_are_refused(tmp_path, choices):
    rows = [{"q": "Which?", "a": answer, "options": choices} for answer in (1, 2, 1)]
    with pytest.raises(DatasetError, match=r"'a' is ambiguous: [12] among .* Set --choice_keys to"):
        load_split(saved(tmp_path / "d", rows), "train", options=DatasetOptions(**CHOICES))
    for keys, letter in {"from_0": "B", "from_1": "A"}.items():
        options = DatasetOptions(**CHOICES, choice_keys=keys)
        data = load_split(saved(tmp_path / f"{keys}", rows), "train", options=options)
        assert data[0]["solution"] == letter
    with pytest.raises(ValueError, match="choice_keys: there is no 'places'"):
        DatasetOptions(**CHOICES, choice_keys="places").columns_of("x")


def test_rows_without_choices(tmp_path):
    """As in MathVision."""
    rows = [{"q": "Which?", "a": "C", "options": ANIMALS}, {"q": "How many?", "a": "12", "options": []}]
    notes = []
    data = load_split(saved(tmp_path / "d", rows), "train", options=DatasetOptions(**CHOICES), notes=notes)
    assert [row["solution"] for row in data] == ["C", "12"]
    assert [row["prompt"][0]["content"] for row in data] == ["Which?\nA. cat\nB. dog\nC. hen\nD. cow", "How many?"]
    assert "letters; 1 rows have no choices" in notes[0]
    rows = [{"q": "How many?", "a": "12", "options": []}]
    with pytest.raises(DatasetError, match="no row has choices in 'options'"):
        load_split(saved(tmp_path / "e", rows), "train", options=DatasetOptions(**CHOICES))


def test_lettered_choices_and_template(tmp_path):
    row = {"q": "Which?", "a": "B", "options": ["A) 21", "B) 2"], "unit": "cm"}
    options = DatasetOptions(**CHOICES, prompt_template="{choices}\nin {unit}: {prompt} {}", system_prompt="Choose.")
    data = load_split(saved(tmp_path / "d", [row]), "train", options=options)
    assert data[0]["prompt"] == [
        {"role": "system", "content": "Choose."},
        {"role": "user", "content": "A) 21\nB) 2\nin cm: Which? {}"},
    ]


def test_image_columns_of_jsonl_parquet_and_streams(tmp_path):
    for number, picture in enumerate(PICTURES):
        picture.save(tmp_path / f"{number}.png")
    rows = [{"q": f"Question {n}?", "a": n + 0.5, "left": "0.png", "right": f"{n}.png"} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"prompt": "q", "solution": "a", "images": ["left", "right"]}
    options = DatasetOptions(dataset_columns=columns)
    data = load_split(str(tmp_path / "rows.jsonl"), "train", options=options)
    assert [row["solution"] for row in data] == ["0.5", "1.5", "2.5"]
    assert [len(row["images"]) for row in data] == [2, 2, 2]
    assert data[2]["images"][1].getpixel((0, 0)) == (0, 0, 255)
    assert [part["type"] for part in data[0]["prompt"][0]["content"]] == ["image", "image", "text"]

    stream = load_split(str(tmp_path / "rows.jsonl"), "train", options=options, streaming=True)
    for one, other in zip(stream, data, strict=True):
        assert (one["prompt"], one["solution"]) == (other["prompt"], other["solution"])
        assert [image.tobytes() for image in one["images"]] == [image.tobytes() for image in other["images"]]

    raw = load_split(str(tmp_path / "rows.jsonl"), "train", options=DatasetOptions(dataset_columns=columns))
    raw.to_parquet(tmp_path / "rows.parquet")
    again = load_split(str(tmp_path / "rows.parquet"), "train")
    assert again[1]["prompt"] == data[1]["prompt"]
    assert again[1]["images"][1].tobytes() == data[1]["images"][1].tobytes()


MISSING = [
    {"images": [PICTURES[0]], "problem": "<image>Find x.", "answer": "3"},
    {"images": [PICTURES[0]], "problem": "<image>Find x.", "answer": None},
    {"images": [PICTURES[0]], "problem": "  ", "answer": "3"},
    {"images": [], "problem": "<image>Find x.", "answer": "3"},
    {"images": [PICTURES[1]], "problem": "<image>Find y.", "answer": "4"},
]


@pytest.mark.parametrize(("row", "column"), [(1, "answer"), (2, "problem"), (3, "images")])
def test_incomplete_rows_are_refused(tmp_path, row, column):
    rows = [MISSING[0], MISSING[row]]
    with pytest.raises(DatasetError, match=rf"row 1 of .*'{column}' is empty.*--drop_incomplete_rows"):
        load_split(geometry(tmp_path / "d", rows), "train", options=DatasetOptions(dataset_format="geometry3k"))


def test_incomplete_rows_are_dropped_and_counted(tmp_path):
    notes = []
    options = DatasetOptions(dataset_format="geometry3k", drop_incomplete_rows=True)
    data = load_split(geometry(tmp_path / "d", MISSING), "train", options=options, notes=notes)
    assert [row["solution"] for row in data] == ["3", "4"]
    (note,) = notes
    assert "3 of 5 rows are incomplete and were dropped" in note


def test_incomplete_rows_in_trl_columns_are_dropped(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": "?"}], "solution": text, "other": 1} for text in ("1", None, "")]
    notes = []
    data = load_split(
        saved(tmp_path / "d", rows), "train", options=DatasetOptions(drop_incomplete_rows=True), notes=notes
    )
    assert data.to_list() == rows[:1]
    assert "2 of 3 rows are incomplete and were dropped" in notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset_columns": {"prompt": "nosuch", "solution": "a"}}, "no column 'nosuch' for the prompt; it has 'q'"),
        ({"dataset_columns": {"question": "q"}}, "dataset_columns must map prompt, solution, images, choices"),
        ({"dataset_columns": {"prompt": "q", "solutoin": "s"}}, "got {'prompt': 'q', 'solutoin': 's'}"),
        ({"dataset_columns": "{"}, "dataset_columns: '{' is not JSON"),
        ({"dataset_columns": {"prompt": 3}}, "prompt must be the name of a column"),
        ({"dataset_format": "nosuch"}, "dataset_format: there is no 'nosuch'; choose one of trl, geometry3k"),
        ({**CHOICES, "prompt_template": "{prompt} {a}"}, "{a} would show the policy the solution"),
        ({**CHOICES, "prompt_template": "{prompt} {solution}"}, "{solution} would show the policy the solution"),
        ({**CHOICES, "prompt_template": "{prompt} {nosuch}"}, "no column 'nosuch' for {nosuch}"),
        ({"dataset_columns": {**QA}, "prompt_template": "{choices}"}, "no column for choices"),
        ({"dataset_columns": {"prompt": "q <image>", "solution": "a"}}, "no column 'q <image>'"),
    ],
)
def test_invalid_mappings_are_refused(tmp_path, options, message):
    folder = saved(tmp_path / "d", [{"q": "?", "a": "B", "options": ["x"]}])
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_split(folder, "train", options=DatasetOptions(**options))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("written", "read"),
    [([7, 8], ["7", "8"]), (["7", 8], ["7", "8"]), ([8, "x"], ["8", "x"]), ([7.5, 1.0], ["7.5", "1"])],
    ids=str,
)
def test_numbers_as_solutions_become_text(tmp_path, written, read):
    turns = [{"role": "user", "content": "How many?"}]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": turns, "solution": solution}) for solution in written))
    data = load_split(str(path), "train")
    assert data["solution"][:] == read
    check_dataset(data, needs_solution=True)


def test_other_solutions_are_refused(tmp_path):
    """Booleans and structures; numbers in a stream, whose images would be decoded."""
    turns = [{"role": "user", "content": "How many?"}]
    for number, solutions in enumerate(([True, "x"], [{"a": 1}, "x"])):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("\n".join(json.dumps({"prompt": turns, "solution": solution}) for solution in solutions))
        with pytest.raises(DatasetError, match="'solution' is not text"):
            check_dataset(load_split(str(path), "train"), needs_solution=True)
    path.write_text(json.dumps({"prompt": turns, "solution": 7}))
    with pytest.raises(DatasetError, match="row 0 of the training set: 'solution' is not text but 7"):
        check_dataset(load_split(str(path), "train", streaming=True), needs_solution=True)
    notes = []
    assert load_split(str(path), "train", notes=notes).column_names == ["prompt", "solution"]
    assert notes == [f"the split 'train' of {path}: solutions that are numbers are converted to text"]


def test_unused_image_columns_are_named(tmp_path, caplog):
    """Images in a column that TRL does not use, and single images in the column of lists."""
    PICTURES[0].save(tmp_path / "a.png")
    turns = [{"role": "user", "content": "How many?"}]

    def rows(**others):
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps({"prompt": turns, "solution": "7", **others}))
        return load_split(str(path), "train")

    with pytest.raises(DatasetError, match="'images' has one image a row; rename it to 'image'"):
        check_dataset(rows(images="a.png"), needs_solution=True)
    held = rows(image="a.png").rename_column("image", "figure")
    assert "'figure' has images" in unused_images(held)
    for seen in (rows(image="a.png"), rows()):
        assert unused_images(seen) is None
        check_dataset(seen, needs_solution=True)
    args = CEPOConfig(output_dir=str(tmp_path / "out"), per_device_train_batch_size=2, num_generations=2)
    CEPOTrainer(policy_path(), half_right, args, held)
    assert "so the policy gets text only. 'figure' has images" in caplog.text


def test_image_places_without_images_are_refused(tmp_path):
    folder = saved(tmp_path / "d", [{"q": "In <image>?", "a": "B"}])
    with pytest.raises(DatasetError, match="has 1 times <image>, and the row has 0 images"):
        load_split(folder, "train", options=DatasetOptions(dataset_columns=QA))


def test_embedded_task_takes_no_mapping():
    with pytest.raises(LoadingError, match="prompt_template: the figures task is in TRL's columns already"):
        load_split("figures", "train", size=1, options=DatasetOptions(prompt_template="{prompt}"))


def figures_in_other_words(folder, count=8):
    """Figures in the columns of Geometry3K; the last prompt is long."""
    rows = []
    for row in load_figures("train", count):
        text = row["prompt"][-1]["content"]
        rows.append({"images": [row["image"]], "problem": f"<image>{text}", "answer": row["solution"]})
    rows[-1]["problem"] += " Angle." * 60
    return geometry(folder, rows)


def test_train_and_explain_a_mapped_data_set(tmp_path, capsys):
    """With `max_prompt_length`; `cepo explain` finds the rows again."""
    folder, out = figures_in_other_words(tmp_path / "d"), tmp_path / "out"
    mapping = ["--dataset_name", folder, "--dataset_format", "geometry3k", "--prompt_template", "{prompt}"]
    config = tmp_path / "base.yaml"
    config.write_text("max_steps: 9\nnum_generations: 4\nper_device_train_batch_size: 8\neval_problems: 0\n")
    second = tmp_path / "own.yaml"
    second.write_text(
        "max_steps: 1\nmax_completion_length: 24\nlog_completions: true\nreport_to: none\nteacher: initial\n"
        "bf16: false\n"
        "reward_funcs: [cepo.tasks.figures.figures_reward]\nmax_prompt_length: 120\n"
    )
    model = ["--model_name_or_path", policy_path(), "--output_dir", str(out)]
    assert cli.main(["train", "--config", str(config), "--config", str(second), *mapping, *model]) == 0
    printed = capsys.readouterr().out
    assert "1 of 8 prompts dropped: longer than 120 tokens" in printed
    assert "1 step of 2 prompts x 4 rollouts" in printed
    assert cli.main(["explain", "--from", str(out), "--num_prompts", "1", "--output_dir", str(out)]) == 0
    page = (out / "explain.html").read_text()
    assert "data:image/png" in page


def test_max_prompt_length_below_all_prompts(tmp_path, capsys):
    folder = figures_in_other_words(tmp_path / "d")
    options = ["--dataset_name", folder, "--dataset_format", "geometry3k", "--eval_problems", "0"]
    model = ["--model_name_or_path", policy_path(), "--output_dir", str(tmp_path / "out")]
    assert cli.main(["train", *options, *model, "--max_prompt_length", "5"]) == 2
    assert "max_prompt_length=5: all 8 prompts are longer" in capsys.readouterr().err
