"""lmms-eval as a process of its own: one benchmark at a time, each in its folder, none of them twice.

It ends with status 0 whatever happens, so that what counts is the file of results that it leaves.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.files import write_whole
from .benchmarks import BENCHMARKS, Benchmark, Sampling

BACKENDS = ("vllm", "transformers")
_LAST_LINES = 12
# What lmms-eval's `qwen3_vl` reads; every other setting it writes down and drops.
_TRANSFORMERS_FAMILIES = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
_START = Path(__file__).with_name("lmms.py")


class SuiteError(ValueError):
    """The suite cannot be run as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Settings:
    """How all benchmarks are run.

    Attributes:
        model: Folder or Hub name, without adapters.
        backend: One of `BACKENDS`.
        sampling: Of answers.
        seed: Of sampling.
        batch_size: Problems at a time.
        device: For the transformers backend.
        limit: Problems of each benchmark; None: all.
        include_path: Folder of further tasks.
        model_args: More of lmms-eval's model arguments.
        python: The interpreter of the environment that has lmms-eval.
    """

    model: str
    backend: str
    sampling: Sampling
    seed: int
    batch_size: int
    python: str
    device: str = "cuda"
    limit: int | None = None
    include_path: str | None = None
    model_args: str | None = None


def check_backend(backend: str, sampling: Sampling, model: str) -> None:
    """Refuse what a backend would drop or could not read.

    Raises:
        SuiteError: Naming the option.
    """
    if "," in model or "=" in model:
        raise SuiteError(f"lmms-eval cannot be told a name with a comma or an equals sign: {model}")
    if backend != "transformers":
        return
    if sampling.presence_penalty:
        raise SuiteError(
            f"--backend transformers would drop --presence_penalty {sampling.presence_penalty:g} without a word; take "
            "--backend vllm, or say --presence_penalty 0, which is not the paper's setting"
        )
    config = Path(model) / "config.json"
    if config.is_file():
        family = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        if family not in _TRANSFORMERS_FAMILIES:
            raise SuiteError(
                f"--backend transformers reads models of {', '.join(_TRANSFORMERS_FAMILIES)}, and {model} is of "
                f"{family}; take --backend vllm"
            )


def check_installed(python: str, backend: str) -> None:
    """Refuse an environment that lacks what the backend needs.

    Raises:
        SuiteError: Saying what is missing, and how to install it.
    """
    needed = ["lmms_eval", "latex2sympy2_extended", "openai", *(("vllm",) if backend == "vllm" else ("decord",))]
    code = f"from importlib.util import find_spec; print(*(n for n in {needed} if find_spec(n) is None))"
    try:
        asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SuiteError(f"--python: cannot run {python}: {error}") from error
    missing = asked.stdout.split()
    if missing == ["vllm"]:
        raise SuiteError(
            "--backend vllm needs vllm, which is not installed: pip install vllm (it wants its own torch; name its "
            "environment with --python), or take --backend transformers --presence_penalty 0"
        )
    if missing:
        named = ", ".join(name for name in missing if name != "vllm")
        raise SuiteError(f"the suite needs {named}: pip install 'cepo[eval]', in a checkout '.[eval]'")


def missing_datasets(benchmarks: Iterable[Benchmark]) -> list[str]:
    """Data sets that are neither in the Hub's cache nor in that of `datasets`.

    A benchmark whose task the user has named brings data of its own, of which nothing is known here.
    """
    from datasets import config
    from datasets.naming import camelcase_to_snakecase
    from huggingface_hub import constants

    missing = []
    for benchmark in benchmarks:
        if benchmark != BENCHMARKS[benchmark.name]:
            continue
        owner, _, name = benchmark.dataset.partition("/")
        downloaded = Path(constants.HF_HUB_CACHE) / f"datasets--{owner}--{name}" / "snapshots"
        prepared = Path(config.HF_DATASETS_CACHE) / f"{owner}___{camelcase_to_snakecase(name)}"
        # Of prepared data there is a folder for each configuration, version and hash. A download serves only where the
        # Hub can be asked for the list of files; offline, prepared data alone do.
        ready = any(prepared.glob("*/*/*/*.arrow"))
        if not ready and (constants.is_offline_mode() or not any(downloaded.glob("*/*"))):
            missing.append(benchmark.dataset)
    return missing


def how_to_get(datasets: Iterable[str]) -> str:
    """Lines of the shell that download data sets and prepare them for use without the network."""
    lines = []
    for name in datasets:
        lines.append(f"  hf download --repo-type dataset {name}")
        lines.append(f"  python -c \"import datasets; datasets.load_dataset('{name}')\"")
    return "\n".join(lines)


def command_of(benchmark: Benchmark, settings: Settings, folder: Path) -> list[str]:
    """The command line of lmms-eval for one benchmark, results into `folder`."""
    sampling = settings.sampling
    generation: dict[str, Any] = asdict(sampling)
    model: dict[str, Any]
    if settings.backend == "vllm":
        # It takes the larger of the task's and the model's longest answer, and its engine's seed is always 1.
        model = {"model": settings.model, "max_new_tokens": sampling.max_new_tokens, "trust_remote_code": False}
        generation["seed"] = settings.seed
    else:
        model = {"pretrained": settings.model, "device": settings.device, "device_map": settings.device}
        del generation["presence_penalty"]  # refused above unless 0, and dropped in any case
    words = [settings.python, str(_START)]
    words += ["--model", "vllm" if settings.backend == "vllm" else "qwen3_vl"]
    words += ["--model_args", ",".join([_pairs(model), *([settings.model_args] if settings.model_args else [])])]
    words += ["--tasks", benchmark.task, "--gen_kwargs", _pairs(generation)]
    words += ["--batch_size", str(settings.batch_size), "--seed", str(settings.seed)]
    # In threads math-verify's time limit raises, and a right answer in another form would count as wrong.
    words += ["--process_docs_parallel", "1"]
    words += ["--output_path", str(folder)]
    if settings.limit is not None:
        words += ["--limit", str(settings.limit)]
    if settings.include_path is not None:
        words += ["--include_path", settings.include_path]
    return [*words, "--log_samples"]


def _pairs(values: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in values.items())


def recorded(benchmark: Benchmark, settings: Settings, source: str) -> dict[str, Any]:
    """What decides a benchmark's numbers; written beside them, so that others are not taken for them.

    Args:
        benchmark: Which.
        settings: How it is run.
        source: The model as the user named it.
    """
    kept = asdict(settings)
    for name in ("model", "python", "device", "batch_size"):  # where it runs; not what is measured
        del kept[name]
    return {"task": benchmark.task, "model": source, "files": fingerprint(source), **kept}


def fingerprint(model: str) -> list[list[Any]]:
    """Names, sizes and times of the files of a local model, from which another model under its name shows.

    Returns:
        [name, bytes, nanoseconds] of each; none for a model on the Hub.
    """
    found = []
    folder = Path(model)
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        if path.suffix in (".safetensors", ".bin") or path.name in ("config.json", "adapter_config.json"):
            about = path.stat()
            found.append([path.name, about.st_size, about.st_mtime_ns])
    return found


def results_file(folder: Path) -> Path | None:
    """The newest file of results that lmms-eval left in a folder: MODEL/TIME_results.json."""
    return max(folder.glob("*/*_results.json"), default=None, key=lambda path: path.name)


def is_done(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a benchmark has been run with these settings.

    Raises:
        SuiteError: If it has been run with others.
    """
    known = folder / "settings.json"
    if results_file(folder) is None or not known.is_file():
        return False
    before = json.loads(known.read_text(encoding="utf-8"))
    if before == json.loads(json.dumps(wanted)):
        return True
    differ = [name for name in wanted if before.get(name) != json.loads(json.dumps(wanted[name]))]
    raise SuiteError(
        f"{folder} holds results with other settings ({', '.join(differ)}); name another --output_dir, or remove it"
    )


def run(benchmark: Benchmark, settings: Settings, folder: Path, wanted: Mapping[str, Any]) -> str | None:
    """Run one benchmark to its end.

    Args:
        benchmark: Which.
        settings: How.
        folder: Where its results, its settings and its log go.
        wanted: What `recorded` says of it.

    Returns:
        None, or why there are no results: the last lines of the log and where it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*/*_samples_*.jsonl"):  # of a run that was stopped; lmms-eval appends to them
        old.unlink()
    write_whole(folder / "settings.json", json.dumps(wanted, indent=2) + "\n")
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as out:
        # A session of its own: Ctrl-C is for this process, which ends what that one has started.
        process = subprocess.Popen(
            command_of(benchmark, settings, folder), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait()
        except BaseException:
            _end(process)
            raise
    if results_file(folder) is not None:
        return None
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = "\n".join(f"    {line[:400]}" for line in lines[-_LAST_LINES:]) or "    (it printed nothing)"
    return f"lmms-eval left no results (exit status {status}); its log is {log}, which ends\n{last}"


def _end(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGTERM)
        else:
            process.terminate()
    process.wait()
