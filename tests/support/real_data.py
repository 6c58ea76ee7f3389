"""Copies of six public datasets: columns, features and notation as on the Hub, with other problems.

`tests/data/<name>.jsonl` holds 60 lines per dataset: `row` (the columns without images), `image_columns` (number of
images in each image column), `completions` (`text` and `correct`) and `answer` (the reference answer).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures
from PIL import ImageDraw

FOLDER = Path(__file__).parents[1] / "data"
TEXT = Value("string")


def texts(*columns: str) -> dict[str, Value]:
    return dict.fromkeys(columns, TEXT)


# Columns in the order of the Hub.
FEATURES = {
    "geometry3k": Features({"images": List(Image()), "problem": TEXT, "answer": TEXT}),  # hiyouga/geometry3k
    "math": Features(texts("problem", "level", "type", "solution")),  # EleutherAI/hendrycks_math
    "dapo_math": Features(  # open-r1/DAPO-Math-17k-Processed
        {
            **texts("prompt", "solution", "data_source"),
            "source_prompt": List({"content": TEXT, "role": TEXT}),
            "ability": TEXT,
            "reward_model": {"ground_truth": TEXT, "style": TEXT},
            "extra_info": {"index": TEXT},
        }
    ),
    "deepmath": Features(  # zwhe99/DeepMath-103K
        {
            **texts("question", "final_answer"),
            "difficulty": Value("float64"),
            **texts("topic", "r1_solution_1", "r1_solution_2", "r1_solution_3"),
        }
    ),
    "mathvision": Features(  # MathLLMs/MathVision
        {
            **texts("id", "question"),
            "options": List(TEXT),
            "image": TEXT,
            "decoded_image": Image(),
            **texts("answer", "solution"),
            "level": Value("int64"),
            "subject": TEXT,
        }
    ),
    "wemath": Features(  # We-Math/We-Math
        {
            **texts("ID", "split", "knowledge concept", "question", "option", "answer"),
            "image_path": Image(),
            "key": TEXT,
            "question number": Value("int64"),
            "knowledge concept description": TEXT,
        }
    ),
}


def load_copy(name: str, folder: Path | str) -> Path:
    """Write the copy `name` (a key of `FEATURES`) to `folder` as parquet, with drawn images of 96 x 64 pixels."""
    features = FEATURES[name]
    rows = []
    for number, line in enumerate(lines_of(name)):
        pictures: dict[str, Any] = {}
        for column, count in line["image_columns"].items():
            drawn = [draw_triangle(number + i) for i in range(count)]
            pictures[column] = drawn if isinstance(features[column], List) else drawn[0]
        row = {**line["row"], **pictures}
        rows.append({column: row[column] for column in features})
    path = Path(folder) / f"{name}.parquet"
    Dataset.from_list(rows, features=features).to_parquet(path)
    return path


def lines_of(name: str) -> Iterator[dict[str, Any]]:
    """The parsed lines of `tests/data/<name>.jsonl`."""
    with (FOLDER / f"{name}.jsonl").open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def draw_triangle(seed: int) -> Pictures.Image:
    """A black triangle on white; its apex depends on `seed`."""
    picture = Pictures.new("RGB", (96, 64), "white")
    ImageDraw.Draw(picture).polygon([(8, 56), (88, 56), (8 + 7 * seed % 81, 8)], outline="black", width=2)
    return picture
