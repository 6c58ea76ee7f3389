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

# Columns in the order of the Hub.
FEATURES = {
    "geometry3k": Features({"images": List(Image()), "problem": TEXT, "answer": TEXT}),  # hiyouga/geometry3k
    "math": Features(dict.fromkeys(["problem", "level", "type", "solution"], TEXT)),  # EleutherAI/hendrycks_math
    "dapo_math": Features(  # open-r1/DAPO-Math-17k-Processed
        {
            "prompt": TEXT,
            "solution": TEXT,
            "data_source": TEXT,
            "source_prompt": List({"content": TEXT, "role": TEXT}),
            "ability": TEXT,
            "reward_model": {"ground_truth": TEXT, "style": TEXT},
            "extra_info": {"index": TEXT},
        }
    ),
    "deepmath": Features(  # zwhe99/DeepMath-103K
        {
            "question": TEXT,
            "final_answer": TEXT,
            "difficulty": Value("float64"),
            "topic": TEXT,
            "r1_solution_1": TEXT,
            "r1_solution_2": TEXT,
            "r1_solution_3": TEXT,
        }
    ),
    "mathvision": Features(  # MathLLMs/MathVision
        {
            "id": TEXT,
            "question": TEXT,
            "options": List(TEXT),
            "image": TEXT,
            "decoded_image": Image(),
            "answer": TEXT,
            "solution": TEXT,
            "level": Value("int64"),
            "subject": TEXT,
        }
    ),
    "wemath": Features(  # We-Math/We-Math
        {
            "ID": TEXT,
            "split": TEXT,
            "knowledge concept": TEXT,
            "question": TEXT,
            "option": TEXT,
            "answer": TEXT,
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
