"""Models, datasets and reward functions by the names a user gives them."""

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    List,
    load_dataset,
    load_from_disk,
)
from huggingface_hub import is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from torch import nn

from ..references.importing import imported
from ..scoring.prompts import tokenizer_of
from .columns import map_rows, read_dataset, with_features
from .embedded import EMBEDDED, holds_model, policy_of
from .formats import FORMATS, DatasetOptions
from .images import ImageFolder, check_places, checked_stream
from .rewards import answer_reward, compares_answers

_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


class LoadingError(ValueError):
    """A model or dataset that cannot be loaded; the message says what was looked for and how to fix it."""


def looks_like_path(name: str) -> bool:
    """Whether a user who wrote this meant a file or folder rather than a name on the Hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in _FORMATS


def resolve_model(name: str, option: str = "model_name_or_path") -> str:
    """The model's folder or Hub name; `option` is what errors call it.

    Raises:
        LoadingError: If it is a path at which there is no model.
    """
    name = policy_of(name)
    path = Path(name).expanduser()
    if path.exists():
        if not holds_model(path):
            raise LoadingError(f"{option}: {name} holds no model (neither config.json nor adapter_config.json)")
        return str(path)
    if looks_like_path(name):
        raise LoadingError(f"{option}: there is no such folder: {name}")
    return name


def load_split(
    name: str,
    split: str,
    *,
    config: str | None = None,
    size: int = 0,
    streaming: bool = False,
    options: DatasetOptions | None = None,
    notes: list[str] | None = None,
) -> Dataset | IterableDataset:
    """A split of a dataset, in TRL's columns.

    Args:
        name: A task of ours (``figures``), a JSON, CSV or parquet file, a folder (of `save_to_disk`, or of data files),
            or a Hub name.
        split: Name of the split. A single file has one only, which serves for any name.
        config: Configuration of the dataset, or variant of the task.
        size: Number of problems to make, for a task of ours.
        streaming: Do not download the whole dataset first.
        options: How the dataset is written; None: by its name.
        notes: Takes what people should be told.

    Raises:
        LoadingError: If the dataset or the split does not exist.
        DatasetError: If it is not written as the options say.
    """
    options = options or DatasetOptions()
    if name in EMBEDDED:
        if given := options.given():
            raise LoadingError(f"{', '.join(given)}: the {name} task is in TRL's columns already; leave it out")
        made, variant = EMBEDDED[name], config or "default"
        if variant not in made.variants:
            raise LoadingError(
                f"dataset_config: the {name} task comes as {', '.join(made.variants)}; there is no {variant!r}"
            )
        return made.make(split, size, **made.variants[variant])

    config = config or FORMATS[options.format_of(name)].config
    called, folder = f"the split {split!r} of {name}", ImageFolder.of(name, options.image_folder)
    columns = options.columns_of(name)
    images = columns.images if columns and columns.images else ("image", "images")
    data = _written(name, split, config, streaming, images, folder)
    data = read_dataset(data, columns, called, drop_incomplete=options.drop_incomplete_rows, notes=notes)
    if isinstance(data, IterableDataset):
        return checked_stream(with_features(data), folder, called)
    check_places(data, folder, called)
    return data


def _written(
    name: str, split: str, config: str | None, streaming: bool, images: Iterable[str], folder: ImageFolder
) -> Dataset | IterableDataset:
    """A split of a dataset that is not ours, in its own columns; a file may name its images."""
    path = Path(name).expanduser()
    if not path.exists() and looks_like_path(name):
        raise LoadingError(f"dataset_name: there is no such file or folder: {name}")
    if path.is_file():
        if path.suffix not in _FORMATS:
            raise LoadingError(f"dataset_name: {name} is none of {', '.join(_FORMATS)}")
        kind = _FORMATS[path.suffix]
        data = _guarded(name, lambda: load_dataset(kind, data_files=str(path), split="train", streaming=streaming))
        return _with_images(data, folder, images, name)
    if path.is_dir() and ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()):
        data = _guarded(name, lambda: load_from_disk(str(path)))
    else:
        data = _guarded(name, lambda: load_dataset(name, name=config, streaming=streaming))
    if isinstance(data, (DatasetDict, IterableDatasetDict)):
        if split not in data:
            raise LoadingError(f"dataset {name} has no split {split!r}; it has {', '.join(map(str, data))}")
        data = data[split]
    return data


def _guarded(name: str, load: Any) -> Any:
    try:
        return load()
    except Exception as error:  # datasets raises many kinds for one mistake: a name or file that cannot be read
        raise LoadingError(f"dataset_name: cannot load {name}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    return str(cause).strip().split("\n")[0] or type(cause).__name__


def _with_images(data: Any, folder: ImageFolder, columns: Iterable[str], name: str) -> Any:
    """Turn columns of image file names, relative to the dataset's own file, into images.

    The paths are made absolute here; whether the files exist is checked, by row, before training.

    Raises:
        DatasetError: Naming the row whose image lies elsewhere; for a stream as its rows arrive.
    """
    data = with_features(data)

    def absolute(path: str | None, place: str) -> dict[str, Any] | None:
        return {"bytes": None, "path": folder.find(path, place)} if path else None

    one = [column for column in dict.fromkeys(columns) if _holds_text(data.features.get(column))]
    several = [column for column in columns if _holds_text(getattr(data.features.get(column), "feature", None))]
    if not one and not several:
        return data

    def read(row: dict[str, Any], number: int) -> dict[str, Any]:
        place = f"row {number} of {name}"
        found: dict[str, Any] = {column: absolute(row[column], f"{place}: '{column}'") for column in one}
        lists = {c: [absolute(path, f"{place}: '{c}'") for path in row[c] or []] for c in several}
        return found | lists

    images = {**dict.fromkeys(one, Image()), **dict.fromkeys(several, List(Image()))}
    return map_rows(data, read, Features({**data.features, **images}), with_indices=True)


def _holds_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) == "string"


def holds_adapters(path: str | Path) -> bool:
    """Whether a folder holds PEFT adapters."""
    return (Path(path) / "adapter_config.json").is_file()


def load_merged(path: str | Path, base: str | None = None, **options: Any) -> Any:
    """A model with its PEFT adapters merged into its weights, in float32 unless `options` say otherwise.

    Args:
        path: The folder of the adapters.
        base: The model that they belong to; None: the one that they name.
        options: For loading the base, as `from_pretrained` takes them.

    Raises:
        LoadingError: If no base is named or it cannot be loaded, or its weights cannot hold what the adapters do.
    """
    check_mergeable(path)
    return merge_weights(load_adapters(path, base, is_trainable=False, **options))


def check_mergeable(path: str | Path) -> None:
    """Refuse adapters that are no part of a model's weights.

    Raises:
        LoadingError: Naming their kind.
    """
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(path)
    if config.is_prompt_learning:
        raise LoadingError(f"{path} holds {config.peft_type.value}, which is read beside a model and cannot be merged")


def adapts_tied_embeddings(model: Any) -> bool:
    """Whether adapters of a PEFT model change an embedding or head whose weight the two share."""
    inner = model.get_base_model()
    embedding, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    if head is None or _without_adapters(embedding).weight is not _without_adapters(head).weight:
        return False
    return _without_adapters(embedding) is not embedding or _without_adapters(head) is not head


def _without_adapters(module: Any) -> Any:
    """The layer inside PEFT's wrappers."""
    while (inside := getattr(module, "base_layer", getattr(module, "original_module", None))) is not None:
        module = inside
    return module


def merge_weights(model: Any) -> Any:
    """The model of a PEFT model, with the adapters added to its weights.

    PEFT adds an adapter to the one weight that a tied embedding and head share, where the adapter changed the output
    of one of them, so the two are untied before that. Where they end up equal they are tied again.

    Args:
        model: The PEFT model; its layers are those of the result.
    """
    unties = adapts_tied_embeddings(model)
    inner = model.get_base_model()
    if unties:
        head = _without_adapters(inner.get_output_embeddings())
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    configs = [inner.config, inner.config.get_text_config()]
    ties = [getattr(config, "tie_word_embeddings", False) for config in configs]
    with warnings.catch_warnings():
        # Of tied weights that adapters change, at length, with code that unties them.
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        merged = model.merge_and_unload(safe_merge=True)
    if unties:
        embedding, head = merged.get_input_embeddings(), merged.get_output_embeddings()
        equal = torch.equal(embedding.weight, head.weight)
        if equal:
            head.weight = embedding.weight
        for config, tied in zip(configs, ties, strict=True):
            config.tie_word_embeddings = tied and equal
    return merged


def load_adapters(path: str | Path, base: str | None = None, *, is_trainable: bool = True, **options: Any) -> Any:
    """A model with PEFT adapters, which can be trained on unless `is_trainable` is off.

    Args:
        path: Their folder.
        base: Their model; None: the one that they name.
        is_trainable: Whether the adapters have gradients.
        options: For loading their model, as `from_pretrained` takes them.

    Raises:
        LoadingError: If no base is named, or it cannot be loaded.
    """
    from peft import PeftConfig, PeftModel
    from trl.trainer.utils import create_model_from_path

    base = base or PeftConfig.from_pretrained(path).base_model_name_or_path
    if not base:
        raise LoadingError(f"{path} does not say which model its adapters belong to (base_model_name_or_path)")
    try:
        model = create_model_from_path(base, **options)
    except OSError as error:
        raise LoadingError(base_error(path, base, error)) from error
    with warnings.catch_warnings():
        # `merge_weights` unties what PEFT warns of here.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True` and a tied layer")
        return PeftModel.from_pretrained(model, path, is_trainable=is_trainable)


def base_error(adapters: str | Path, base: str, error: OSError) -> str:
    """That the model of adapters cannot be loaded, and why."""
    missing = why_missing(error, base)
    why = first_line(error) if missing is None else f"it is {missing}"
    return f"cannot load {base}, the model of these adapters ({adapters}): {why}"


@contextmanager
def model_errors_named(option: str, name: str) -> Iterator[None]:
    """One line for two mistakes that libraries explain at length: no such model, and code that nobody asked to run.

    Raises:
        LoadingError: Naming the option and the fix.
    """
    try:
        yield
    except ValueError as error:
        if isinstance(error, LoadingError) or "trust_remote_code" not in str(error):
            raise
        raise LoadingError(
            f"{option}: {name} needs code that comes with it. Read it, and run it with trust_remote_code (on the "
            "command line --trust_remote_code true), or take another model"
        ) from error
    except OSError as error:
        if (missing := why_missing(error, name)) is None:
            raise
        raise LoadingError(f"{option}: {name} is {missing}") from error


def why_missing(error: OSError, name: str) -> str | None:
    """Where a model was looked for in vain, and the fix, as the end of a sentence; None: that is not what is wrong."""
    if Path(name).expanduser().exists():
        return None
    cause = error.__cause__ or error
    if isinstance(cause, HFValidationError):
        return "neither a folder here nor a name that the Hub allows; give the path of a folder, or owner/name"
    if isinstance(cause, RepositoryNotFoundError) and not isinstance(cause, GatedRepoError):
        return (
            "neither a folder here, nor a model in this machine's cache or on the Hub that you may read; give the path "
            "of a folder, or owner/name (hf auth login, if it is private)"
        )
    # With its configuration in the cache it is there, though not as a whole.
    if isinstance(cause, LocalEntryNotFoundError) and not isinstance(try_to_load_from_cache(name, "config.json"), str):
        asked = "was not asked (HF_HUB_OFFLINE)" if is_offline_mode() else "could not be reached"
        return (
            f"neither a folder here nor a model in this machine's cache, and the Hub {asked}; give the path of a "
            "folder, or fetch the model first (hf download owner/name)"
        )
    return None


def load_policy(name: str, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """A model for evaluation and its processor or tokenizer; a PEFT adapter is merged into its base.

    Args:
        name: Its folder or Hub name.
        trust_remote_code: Whether to run code that comes with it.

    Raises:
        LoadingError: If there is no such model, or it needs code that may not be run.
    """
    from trl.trainer.utils import create_model_from_path

    path = resolve_model(name)
    load = load_merged if holds_adapters(path) else create_model_from_path
    try:
        with model_errors_named("model_name_or_path", name):
            model = load(path, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise LoadingError(f"model_name_or_path: cannot load {name}: {first_line(error)}") from error
    return model, load_processor(path, trust_remote_code=trust_remote_code)


def load_processor(name: str, *, trust_remote_code: bool = False) -> Any:
    """A model's processor, or tokenizer where it has none, as TRL makes it.

    Args:
        name: The model's folder or Hub name.
        trust_remote_code: Whether to run code that comes with it.

    Raises:
        LoadingError: If there is none, it has no chat template, or it needs code that may not be run.
    """
    from transformers import AutoProcessor

    try:
        # Not given, transformers would ask at the terminal whether to run what it finds.
        with model_errors_named("model_name_or_path", name):
            processing_class = AutoProcessor.from_pretrained(
                name, padding_side="left", trust_remote_code=trust_remote_code
            )
    except LoadingError:
        raise
    except (OSError, ValueError) as error:
        raise LoadingError(f"model_name_or_path: no tokenizer with {name}: {first_line(error)}") from error
    tokenizer = tokenizer_of(processing_class)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    require_chat_template(processing_class)
    return processing_class


@contextmanager
def whole_on_each_process() -> Iterator[None]:
    """What is loaded here is whole on each process, though the run's own model be sharded as it is loaded.

    transformers would shard it too (ZeRO-3), or leave it empty on all processes but the first (FSDP).
    """
    from transformers.integrations import deepspeed

    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    config, flag = deepspeed._hf_deepspeed_config_weak_ref, os.environ.pop(name, None)
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
        if flag is not None:
            os.environ[name] = flag


def load_teacher_model(name: str, processing_class: Any, dtype: Any, *, trust_remote_code: bool = False) -> Any:
    """A model that teaches another: same vocabulary, eval mode, no gradient.

    Args:
        name: Its folder or Hub name.
        processing_class: The tokenizer or processor of the model that is taught; its tokens are what the teacher reads.
        dtype: Of its weights.
        trust_remote_code: Whether to run code that comes with it.

    Raises:
        LoadingError: If there is no such model, its vocabulary is another, or it needs code that may not be run.
    """
    from transformers import AutoTokenizer
    from trl.trainer.utils import create_model_from_path

    path = resolve_model(name, "teacher_model_name_or_path")
    try:
        with whole_on_each_process(), model_errors_named("teacher_model_name_or_path", name):
            model = create_model_from_path(path, dtype=dtype, trust_remote_code=trust_remote_code)
            vocabulary = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code).get_vocab()
    except LoadingError:
        raise
    except (OSError, ValueError) as error:
        raise LoadingError(f"teacher_model_name_or_path: cannot load {name}: {first_line(error)}") from error
    own = tokenizer_of(processing_class).get_vocab()
    if vocabulary != own:
        differ = len(vocabulary.items() ^ own.items())
        raise LoadingError(
            f"teacher_model_name_or_path: {name} has another vocabulary than the policy ({differ} entries differ), so "
            "it cannot read the policy's tokens"
        )
    return model.eval().requires_grad_(False)


def require_chat_template(processing_class: Any) -> None:
    """Refuse a model that cannot be given a conversation.

    Raises:
        LoadingError: If it has no chat template.
    """
    tokenizer = tokenizer_of(processing_class)
    if not getattr(processing_class, "chat_template", None) and not tokenizer.chat_template:
        raise LoadingError(
            f"the model's {type(processing_class).__name__} has no chat template, so it cannot be given a "
            "conversation; use an instruction-tuned model, or set `chat_template` on its tokenizer."
        )


def load_reward_funcs(names: list[str]) -> list[Any]:
    """Reward functions: our `answer_reward`, those of `trl.rewards` by name, others by their import path.

    Raises:
        LoadingError: If there is no such function.
    """
    from trl import rewards as trl_rewards

    functions = []
    for name in names:
        if name == answer_reward.__name__:
            function = answer_reward
        elif "." not in name:
            known = [n for n in dir(trl_rewards) if n.endswith("_reward") and not n.startswith("get_")]
            known.append(answer_reward.__name__)
            if name not in known:
                raise LoadingError(
                    f"reward_funcs: there is no {name!r}; choose of {', '.join(known)}, or give module.function"
                )
            function = getattr(trl_rewards, name)
        else:
            try:
                function = imported("reward_funcs", name)
            except ValueError as error:
                raise LoadingError(str(error)) from error
        functions.append(function)
    return functions


def need_solutions(functions: Iterable[Any]) -> bool:
    """Whether one of these reward functions is known to compare with the `solution` column."""
    return any(map(compares_answers, functions))


# What transformers' vision-language models call their vision tower.
_VISION_TOWERS = {"visual", "vision_model", "vision_tower"}


def freeze_vision_tower(model: nn.Module) -> None:
    """Train all but the vision tower.

    Raises:
        ValueError: If the model has none.
    """
    frozen = [p for name, p in model.named_parameters() if _VISION_TOWERS & set(name.split("."))]
    if not frozen:
        raise ValueError(
            f"freeze_vision_tower: {type(model).__name__} has no part named {' or '.join(sorted(_VISION_TOWERS))}"
        )
    for parameter in frozen:
        parameter.requires_grad_(False)
