"""`cepo merge`: adapters written into their model, so that everything that reads models reads it."""

import argparse
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from rich.console import Console

from ..data.hub import HubError, hub_errors, upload_command
from ..data.merging import DTYPES, check_merge, merge_adapters
from . import quiet_libraries
from .options import make_command_parser


def make_parser() -> argparse.ArgumentParser:
    parser = make_command_parser(
        "merge", "Write LoRA and other PEFT adapters into the weights of their model: a folder that loads without PEFT."
    )
    add = parser.add_argument_group("model").add_argument
    add("--model_name_or_path", required=True, help="folder of the adapters, as `cepo train --use_peft` leaves it")
    add("--base_model", default=None, help="folder or name of their model (none: the one that they name)")
    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, required=True, help="folder for the model; must be empty, or not be there yet")
    add("--dtype", choices=list(DTYPES), default="auto", help="of the weights saved; auto: as the base has them")
    add("--max_shard_size", default="5GB", help="largest file of weights")
    add("--push_to_hub", metavar="NAME", default=None, help="also upload the folder to the Hub, under this name")
    add("--private", action="store_true", help="make that a private repository")
    return parser


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Look at what the command line names; what is returned merges it and gives the exit status.

    Raises:
        ValueError, OSError: For mistakes in options or folders.
    """
    options = make_parser().parse_args(arguments)
    quiet_libraries()
    check_merge(options.model_name_or_path, options.output_dir)
    if options.private and not options.push_to_hub:
        raise ValueError("--private is about the repository of --push_to_hub, which was not given")
    api, name = huggingface_hub.HfApi(), options.push_to_hub
    upload = upload_command(str(name), options.output_dir, private=options.private)
    if name:
        fix = f"leave it out and upload the folder later ({upload}), or log in (hf auth login)"
        with hub_errors("push_to_hub: the repository cannot be made on the Hub", fix):
            url = api.create_repo(name, private=options.private, exist_ok=True)
    merged = merge_adapters(
        options.model_name_or_path,
        options.output_dir,
        base=options.base_model,
        dtype=DTYPES[options.dtype],
        shard=options.max_shard_size,
    )

    def report(console: Console) -> int:
        kind = str(merged.dtype).removeprefix("torch.")
        console.print(
            f"{merged.base} with {options.model_name_or_path}: {merged.parameters:,} parameters in {kind}, "
            f"in {options.output_dir}; log-probs of a prompt within {merged.difference:.1g} nats of the adapters'",
            highlight=False,
            markup=False,
        )
        if not name:
            return 0
        try:
            with hub_errors(f"{options.output_dir} was not uploaded to the Hub", f"upload it later: {upload}"):
                api.upload_folder(repo_id=name, folder_path=options.output_dir)
        except HubError as error:
            console.print(str(error), highlight=False, markup=False)
            return 1
        console.print(f"uploaded to {url}", highlight=False, markup=False)
        return 0

    return report
