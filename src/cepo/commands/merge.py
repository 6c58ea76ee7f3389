"""`cepo merge`: merge PEFT adapters into their base model, as a folder that loads without PEFT."""

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from ..data.merging import DTYPES, merge_adapters
from . import quiet_libraries
from .options import make_command_parser


def make_parser() -> argparse.ArgumentParser:
    parser = make_command_parser(
        "merge", "Merge LoRA and other PEFT adapters into the weights of their base model: a folder without PEFT."
    )
    add = parser.add_argument_group("model").add_argument
    add("--model_name_or_path", required=True, help="folder of the adapters, as written by cepo train --use_peft")
    add("--base_model", help="folder or Hub name of the base model (default: as named by the adapters)")
    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, required=True, help="folder of the merged model; must be empty or not exist")
    add("--dtype", choices=list(DTYPES), default="auto", help="of the saved weights; auto: of the base model")
    return parser


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Validate the options, merge, and return the job that reports."""
    options = make_parser().parse_args(arguments)
    quiet_libraries()
    adapters, output = options.model_name_or_path, options.output_dir
    model = merge_adapters(adapters, output, base=options.base_model, dtype=DTYPES[options.dtype])

    def job(console: Console) -> int:
        dtype = str(model.dtype).removeprefix("torch.")
        console.print(f"merged {adapters}: {model.num_parameters():,} parameters in {dtype}, in {output}")
        return 0

    return job
