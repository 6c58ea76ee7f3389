"""`cepo merge`: merge PEFT adapters into their base model, as a folder that loads without PEFT."""

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
        "merge", "Merge LoRA and other PEFT adapters into the weights of their base model: a folder without PEFT."
    )
    add = parser.add_argument_group("model").add_argument
    add("--model_name_or_path", required=True, help="folder of the adapters, as written by cepo train --use_peft")
    add("--base_model", help="folder or Hub name of the base model (none: as named by the adapters)")
    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, required=True, help="folder of the merged model; must be empty or not exist")
    add("--dtype", choices=list(DTYPES), default="auto", help="of the saved weights; auto: of the base model")
    add("--max_shard_size", default="5GB", help="maximum size of a file of weights")
    add("--push_to_hub", metavar="NAME", help="upload the folder to the Hub under this name")
    add("--private", action="store_true", help="make the repository of --push_to_hub private")
    return parser


def prepare(arguments: list[str]) -> Callable[[Console], int]:
    """Validate the options, merge, and return the job that uploads and reports.

    Raises:
        ValueError, OSError: For invalid options or folders.
    """
    options = make_parser().parse_args(arguments)
    quiet_libraries()
    check_merge(options.model_name_or_path, options.output_dir)
    if options.private and not options.push_to_hub:
        raise ValueError("--private needs --push_to_hub")
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

    def job(console: Console) -> int:
        dtype = str(merged.dtype).removeprefix("torch.")
        console.print(
            f"{merged.base} with {options.model_name_or_path}: {merged.parameters:,} parameters in {dtype}, in "
            f"{options.output_dir}; log-probs of a prompt within {merged.difference:.1g} nats of the adapters'"
        )
        if not name:
            return 0
        try:
            with hub_errors(f"{options.output_dir} was not uploaded to the Hub", f"upload it later: {upload}"):
                api.upload_folder(repo_id=name, folder_path=options.output_dir)
        except HubError as error:
            console.print(str(error))
            return 1
        console.print(f"uploaded to {url}")
        return 0

    return job
