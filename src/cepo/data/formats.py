"""How known data sets are written, and the options that say it of others."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .columns import CHOICE_KEYS, Columns

BOXED = "{prompt}\n\nReason step by step, and put your final answer in \\boxed{}."


@dataclass(frozen=True)
class Format:
    """How a known data set is written.

    Attributes:
        names: On the Hub.
        columns: As the option `dataset_columns` has it.
        template: As the option `prompt_template` has it.
        rows: Rows of each split, where they are known.
        config: The configuration that has them, where a name needs one.
    """

    names: tuple[str, ...]
    columns: Mapping[str, str]
    template: str = BOXED
    rows: Mapping[str, int] = field(default_factory=dict)
    config: str | None = None


FORMATS: dict[str, Format] = {
    "trl": Format((), {}, "{prompt}"),
    "geometry3k": Format(
        ("hiyouga/geometry3k",),
        {"prompt": "problem", "solution": "answer", "images": "images"},
        rows={"train": 2101, "validation": 300, "test": 601},
    ),
    "gsm8k": Format(
        ("openai/gsm8k", "gsm8k"),
        {"prompt": "question", "solution": "answer"},
        rows={"train": 7473, "test": 1319},
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
        rows={"test": 3040, "testmini": 304},
    ),
    "wemath": Format(
        ("We-Math/We-Math",),
        {"prompt": "question", "solution": "answer", "images": "image_path", "choices": "option"},
        rows={"testmini": 1740},
    ),
    # What verl's examples write: a conversation, and the answer among what the reward needs.
    "verl": Format((), {"prompt": "prompt", "solution": "reward_model.ground_truth"}, "{prompt}"),
}


@dataclass
class DatasetOptions:
    """How a data set's own columns become TRL's; with nothing given, by the data set's name, or they are TRL's."""

    dataset_format: str | None = field(
        default=None,
        metadata={
            "help": f"How the data set is written: {', '.join(FORMATS)}. None: by its name, else TRL's columns, trl."
        },
    )
    dataset_columns: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Which columns of the data set hold prompt, solution, images and choices, over those of "
            "dataset_format: a mapping in YAML, JSON on the command line. Dots reach into a column; images may name "
            "several."
        },
    )
    prompt_template: str | None = field(
        default=None,
        metadata={
            "help": "Text of the user turn, with {prompt}, {choices} or a column's name in braces; <image> is a place "
            "for an image. None: that of dataset_format."
        },
    )
    choice_keys: str | None = field(
        default=None,
        metadata={
            "help": f"What solutions are among choices: {', '.join(CHOICE_KEYS)}. None: decided over the whole column, "
            "and refused where that is ambiguous."
        },
    )
    system_prompt: str | None = field(default=None, metadata={"help": "Text of a system turn before the prompt."})
    image_folder: str | None = field(
        default=None,
        metadata={
            "help": "Folder that names of image files are relative to, and may not lead out of. None: that of the data "
            "set's file."
        },
    )
    drop_incomplete_rows: bool = field(
        default=False,
        metadata={"help": "Leave out rows without prompt, solution or image, and say how many; else they are refused."},
    )

    def given(self) -> dict[str, Any]:
        """What is not as it would be anyway, by option."""
        values = {one.name: getattr(self, one.name) for one in fields(DatasetOptions)}
        return {name: value for name, value in values.items() if value not in (None, False)}

    def format_of(self, dataset_name: str) -> str:
        """Name of the format that a data set has.

        Raises:
            ValueError: If there is no such format.
        """
        if self.dataset_format is None:
            return next((name for name, known in FORMATS.items() if dataset_name in known.names), "trl")
        if self.dataset_format not in FORMATS:
            raise ValueError(f"dataset_format: there is no {self.dataset_format!r}; choose of {', '.join(FORMATS)}")
        return self.dataset_format

    @property
    def image_columns(self) -> tuple[str, ...]:
        """Those that the user names."""
        return _names(_mapping(self.dataset_columns).get("images"))

    def columns_of(self, dataset_name: str) -> "Columns | None":
        """How a data set is read; None if it is in TRL's columns already.

        Raises:
            ValueError: Naming the option that cannot be.
        """
        name = self.format_of(dataset_name)
        own = _mapping(self.dataset_columns)
        if name == "trl" and not own and self.prompt_template is None and self.system_prompt is None:
            return None
        if self.choice_keys is not None and self.choice_keys not in CHOICE_KEYS:
            raise ValueError(f"choice_keys: there is no {self.choice_keys!r}; choose of {', '.join(CHOICE_KEYS)}")
        known = FORMATS[name]
        merged = {**known.columns, **own}
        template = known.template if self.prompt_template is None else self.prompt_template
        return Columns(
            prompt=merged.get("prompt", "prompt"),
            solution=merged.get("solution", "solution"),
            images=_names(merged.get("images")),
            choices=merged.get("choices"),
            choice_keys=self.choice_keys,
            template=template,
            templated=self.prompt_template is not None,
            system=self.system_prompt,
        )


def _names(given: Any) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())


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
        odd = [repr(part) for part in given if part not in _PARTS] if isinstance(given, Mapping) else []
        unknown = f"; there is no {', '.join(odd)}" if odd else ""
        raise ValueError(f"dataset_columns must map {', '.join(_PARTS)} to names of columns, got {given!r}{unknown}")
    for part, column in given.items():
        several = part == "images" and isinstance(column, list) and all(isinstance(one, str) for one in column)
        if not isinstance(column, str) and not several:
            raise ValueError(f"dataset_columns: {part} must be the name of a column, got {column!r}")
    return given
