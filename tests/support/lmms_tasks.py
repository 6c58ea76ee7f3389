"""Small problems in the formats of the five benchmarks, and a version of the shipped policy for lmms-eval's images.

Each task includes lmms-eval's file, whose functions make the prompts and grade the answers; only the name of the task
and the path of its data differ.
"""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Pictures
from transformers import AutoProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from cepo import load_figures, policy_path
from cepo.tasks.figures import cases_of

# lmms-eval's file and split of each benchmark.
STOCK = {
    "dynamath": ("dynamath/reasoning/dynamath.yaml", "test"),
    "logicvista": ("logicvista/reasoning/logicvista_thinking.yaml", "test"),
    "mathvision": ("mathvision/mathvision_testmini.yaml", "testmini"),
    "mmmu": ("mmmu/mmmu_val.yaml", "validation"),
    "wemath": ("wemath/reasoning/wemath_testmini_thinking.yaml", "testmini"),
}
TASKS = {name: f"figures_{name}" for name in STOCK}
SCALE = 2


def solvable() -> list[dict]:
    """Figures without a case of a wrong belief; the policy solves nearly all of them."""
    return [row for row in load_figures("test", 100) if not cases_of(SimpleNamespace(**row))]


def problems(number: int) -> list[dict]:
    """The first of them: question, image, answer."""
    return [
        {
            "question": row["prompt"][0]["content"],
            "image": row["image"].resize([SCALE * side for side in row["image"].size], Pictures.Resampling.NEAREST),
            "answer": f"({', '.join(map(str, row['angles']))})",
        }
        for row in solvable()[:number]
    ]


def dynamath(some):
    """Two questions with two variants each."""
    return [
        {
            "question": one["question"],
            "decoded_image": one["image"],
            "ground_truth": one["answer"],
            "question_id": str(index),
            "id": str(index // 2),
        }
        for index, one in enumerate(some)
    ]


def logicvista(some):
    """The first answer in another form, for math-verify."""
    rows = [{"question": one["question"], "image": one["image"], "answer": one["answer"]} for one in some]
    rows[0]["answer"] = in_another_form(rows[0]["answer"])
    return rows


def mathvision(some):
    """The first answer in another form, for latex2sympy."""
    rows = [
        {"question": one["question"], "options": [], "answer": one["answer"], "decoded_image": one["image"]}
        for one in some
    ]
    rows[0]["answer"] = in_another_form(rows[0]["answer"])
    return rows


def in_another_form(answer: str) -> str:
    """(162/2, 73, 79) for (81, 73, 79)."""
    first, comma, rest = answer.removeprefix("(").partition(",")
    return f"({2 * int(first)}/2{comma}{rest}"


def mmmu(some):
    """Open questions, and one with choices."""
    rows = [
        {
            "id": f"validation_Math_{index + 1}",
            "question": f"<image 1>{one['question']}",
            "options": "[]",
            "question_type": "open",
            "answer": one["answer"],
            "image_1": one["image"],
        }
        for index, one in enumerate(some)
    ]
    rows[-1].update(options=str([rows[-1]["answer"], "none of these"]), question_type="multiple-choice", answer="A")
    return rows


def wemath(some):
    """A family of two steps and one of three."""
    keys = [*("2steps_1", "2steps_2", "2steps_multi"), *("3steps_1", "3steps_2", "3steps_3", "3steps_multi")]
    return [
        {
            "ID": key[0],
            "split": "testmini",
            "knowledge concept": "angles",
            "question": one["question"],
            "option": "",
            "answer": one["answer"],
            "image_path": one["image"],
            "key": key,
            "question number": index,
            "knowledge concept description": "",
        }
        for index, (key, one) in enumerate(zip(keys, some, strict=True))
    ]


ROWS = {"dynamath": (dynamath, 4), "logicvista": (logicvista, 8), "mathvision": (mathvision, 4), "mmmu": (mmmu, 4)}
ROWS["wemath"] = (wemath, 7)


def make_tasks(folder: Path) -> str:
    """Write datasets and task files of all five; returns the folder for --include_path."""
    tasks = Path(find_spec("lmms_eval").submodule_search_locations[0]) / "tasks"
    (folder / "tasks").mkdir()
    for name, (stock, split) in STOCK.items():
        make, number = ROWS[name]
        rows = make(problems(number))
        kinds = {Pictures.Image: Image(), list: List(Value("string")), int: Value("int64"), str: Value("string")}
        features = {
            column: next(feature for kind, feature in kinds.items() if isinstance(value, kind))
            for column, value in rows[0].items()
        }
        data = folder / "data" / name
        DatasetDict({split: Dataset.from_list(rows, features=Features(features))}).save_to_disk(data)
        (folder / "tasks" / f"{name}.yaml").write_text(
            f"include: {tasks / stock}\n"
            f"task: {TASKS[name]}\n"
            "tag: []\n"
            f"dataset_path: {data}\n"
            "dataset_kwargs:\n  load_from_disk: true\n"
        )
    return str(folder / "tasks")


def make_policy(folder: Path) -> str:
    """The shipped policy for doubled images with doubled patches: its logits are those of the original.

    lmms-eval resizes images to multiples of 32 pixels (patches of 16, merges of 2): 112 x 64 becomes 128 x 64, and the
    policy has patches of 8. A kernel of 16 with each weight four times, divided by four, gives on an image with each
    pixel four times the output of the kernel of 8. The chat template drops system messages, which the policy was not
    trained on.
    """
    config = Qwen3VLConfig.from_pretrained(policy_path())
    weights = Qwen3VLForConditionalGeneration.from_pretrained(policy_path(), dtype="float32").state_dict()
    config.vision_config.patch_size *= SCALE
    name = "model.visual.patch_embed.proj.weight"
    weights[name] = weights[name].repeat_interleave(SCALE, -1).repeat_interleave(SCALE, -2) / SCALE**2
    model = Qwen3VLForConditionalGeneration(config).to(torch.float32)
    model.load_state_dict(weights)
    model.generation_config = model.generation_config.from_pretrained(policy_path())
    model.save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(policy_path())
    processor.image_processor.patch_size *= SCALE
    start = "{%- for message in messages -%}"
    assert start in processor.chat_template
    processor.chat_template = processor.chat_template.replace(
        start, "{%- for message in messages if message['role'] != 'system' -%}"
    )
    processor.save_pretrained(folder)
    return str(folder)
