"""Formats of known datasets, and the options that describe others."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .choices import CHOICE_KEYS
from .columns import Columns

BOXED = "{prompt}\n\nReason step by step, and put your final answer in \\boxed{}."


@dataclass(frozen=True)
class Format:
    """Columns of a known dataset.

    Attributes:
        names: Names on the Hub.
        columns: Value of the option `dataset_columns`.
        template: Value of the option `prompt_template`.
        config: Configuration of the dataset, if it needs one.
    """

    names: tuple[str, ...]
    columns: Mapping[str, str]
    template: str = BOXED
    config: str | None = None


FORMATS: dict[str, Format] = {
    "trl": Format((), {}, "{prompt}"),
    "geometry3k": Format(
        ("hiyouga/geometry3k",),
        {"prompt": "problem", "solution": "answer", "images": "images"},
    ),
    "gsm8k": Format(
        ("openai/gsm8k", "gsm8k"),
        {"prompt": "question", "solution": "answer"},
        config="main",
    ),
    "math": Format(
        (
            "DigitalLearningGmbH/MATH-lighteval",
            "EleutherAI/hendrycks_math",
            "HuggingFaceH4/MATH-500",
            "AI-MO/NuminaMath-TIR",
            "AI-MO/NuminaMath-CoT",
        ),
        {"prompt": "problem", "solution": "solution"},
    ),
    "dapo_math": Format(("open-r1/DAPO-Math-17k-Processed",), {"prompt": "prompt", "solution": "solution"}),
    "deepmath": Format(("zwhe99/DeepMath-103K",), {"prompt": "question", "solution": "final_answer"}),
    "mathvision": Format(
        ("MathLLMs/MathVision",),
        {"prompt": "question", "solution": "answer", "images": "decoded_image", "choices": "options"},
    ),
    "wemath": Format(
        ("We-Math/We-Math",),
        {"prompt": "question", "solution": "answer", "images": "image_path", "choices": "option"},
    ),
    # As in verl's examples: a conversation, and the answer among the arguments of the reward.
    "verl": Format((), {"prompt": "prompt", "solution": "reward_model.ground_truth"}, "{prompt}"),
}


@dataclass
class DatasetOptions:
    """Mapping from a dataset's columns to TRL's. By default, the format follows from the dataset's name."""

    dataset_format: str | None = field(
        default=None,
        metadata={
            "help": f"Format of the dataset: {', '.join(FORMATS)}. Default: by the dataset's name, else trl (TRL's "
            "columns)."
        },
    )
    dataset_columns: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Columns for prompt, solution, images and choices, instead of those of dataset_format. A mapping "
            "in YAML, JSON on the command line. Dots select nested columns; images may be a list of columns."
        },
    )
    prompt_template: str | None = field(
        default=None,
        metadata={
            "help": "Text of the user turn, with {prompt}, {choices} or the name of a column in braces; <image> marks "
            "the position of an image. Default: that of dataset_format."
        },
    )
    choice_keys: str | None = field(
        default=None,
        metadata={
            "help": f"Form of solutions among choices: {', '.join(CHOICE_KEYS)}. Default: found from the whole column, "
            "an error if ambiguous."
        },
    )
    system_prompt: str | None = field(default=None, metadata={"help": "Text of a system turn before the prompt."})
    image_folder: str | None = field(
        default=None,
        metadata={
            "help": "Folder that contains all image files; file names are relative to it. Default: the folder of the "
            "dataset's file."
        },
    )
    drop_incomplete_rows: bool = field(
        default=False,
        metadata={"help": "Drop rows without prompt, solution or image, and log how many; else they are an error."},
    )

    def given(self) -> dict[str, Any]:
        """Options without their default value."""
        values = {one.name: getattr(self, one.name) for one in fields(DatasetOptions)}
        return {name: value for name, value in values.items() if value not in (None, False)}

    def format_of(self, dataset_name: str) -> str:
        """Name of a dataset's format."""
        if self.dataset_format is None:
            return next((name for name, known in FORMATS.items() if dataset_name in known.names), "trl")
        if self.dataset_format not in FORMATS:
            raise ValueError(f"dataset_format: there is no {self.dataset_format!r}; choose one of {', '.join(FORMATS)}")
        return self.dataset_format

    def columns_of(self, dataset_name: str) -> "Columns | None":
        """A dataset's mapping of columns. None if it has TRL's columns."""
        name = self.format_of(dataset_name)
        given = _mapping(self.dataset_columns)
        if name == "trl" and not given and self.prompt_template is None and self.system_prompt is None:
            return None
        if self.choice_keys is not None and self.choice_keys not in CHOICE_KEYS:
            raise ValueError(f"choice_keys: there is no {self.choice_keys!r}; choose one of {', '.join(CHOICE_KEYS)}")
        columns = {**FORMATS[name].columns, **given}
        images = columns.get("images", ())
        return Columns(
            prompt=columns.get("prompt", "prompt"),
            solution=columns.get("solution", "solution"),
            images=(images,) if isinstance(images, str) else tuple(images),
            choices=columns.get("choices"),
            choice_keys=self.choice_keys,
            template=FORMATS[name].template if self.prompt_template is None else self.prompt_template,
            custom_template=self.prompt_template is not None,
            system=self.system_prompt,
        )


_PARTS = ("prompt", "solution", "images", "choices")


def _mapping(given: Any) -> dict[str, Any]:
    """The option `dataset_columns` as a mapping."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise ValueError(f"dataset_columns: {given!r} is not JSON: {error}") from error
    if given is None:
        return {}
    if not isinstance(given, dict) or not set(given) <= set(_PARTS):
        raise ValueError(f"dataset_columns must map {', '.join(_PARTS)} to names of columns, got {given!r}")
    for part, column in given.items():
        several = part == "images" and isinstance(column, list) and all(isinstance(one, str) for one in column)
        if not isinstance(column, str) and not several:
            raise ValueError(f"dataset_columns: {part} must be the name of a column, got {column!r}")
    return given
