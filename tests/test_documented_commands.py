"""The documented commands exist and run; links between pages resolve.

The quick tests check commands, flags, make targets, files, extras and links. The slow test runs every `cepo` command
that runs as written, with flags that make it small, in a folder with the names that the pages use.
"""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from cepo import cli, load_figures, policy_path
from cepo.trainer.arguments import make_parser
from cepo.trainer.cepo_config import CEPOConfig

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "recipes" / "README.md"]
PAGES += [*sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("experiments/*.md"))]
LINKED = [*PAGES, ROOT / "dev" / "LOG.md"]
STARTS = ("cepo", "make", "python", "pip", "accelerate", "torchrun")

# Patterns of commands that the slow test does not run, and the reason, or the test that covers them.
ELSEWHERE = {
    r"^make (train|test)$": "test_default_run.py; the test suite",
    r"^make (bench|bench-quick|gpu|smollm)$|^python -m benchmarks": "test_benchmarks.py",
    r"^pip install": "the tests run in such an environment; extras are checked below",
    r"--config experiments/|^python -m experiments": "minutes to hours; tests/experiments",
    r"^cepo suite": "a download; test_suite.py",
    r"smollm": "a download; test_smollm.py",
    r"recipes/": "a GPU and a download; test_dry_run.py checks each",
    r"--accelerate_config|^accelerate|^torchrun": "several processes; test_launch.py, make test-sharded",
    r"^python examples/": "test_examples.py",
    r"^python scripts/": "test_real_data.py",
    r"own-data": "test_examples.py",
    r"\.\.\.$": "an incomplete line",
}

QUICK_TRAIN = [
    *("--max_steps=1", "--per_device_train_batch_size=8", "--num_generations=4", "--max_completion_length=24"),
    *("--eval_problems=4", "--eval_sampled_problems=2", "--eval_samples=2", "--bf16=false", "--report_to=none"),
    *("--learning_rate=1e-5", "--gradient_checkpointing=false"),
]
QUICK = {
    "train": QUICK_TRAIN,
    "compare": [*QUICK_TRAIN[:-2], "--seeds=1"],
    "evaluate": ["--num_problems=4", "--num_samples=2", "--max_completion_length=24"],
    "explain": ["--num_generations=4", "--max_completion_length=48"],
    "merge": [],
}


def commands_of(text):
    """The commands in the code blocks of a page, continued lines joined, comments removed."""
    commands, lines = [], text.splitlines()
    fenced, position = False, 0
    while position < len(lines):
        line = lines[position]
        position += 1
        if line.startswith("```"):
            fenced = not fenced
        inside = fenced or line.startswith("    ")
        if not inside or line.strip().split(" ")[0] not in STARTS:
            continue
        command = line.strip()
        while command.endswith("\\") and position < len(lines):
            command = command[:-1] + lines[position].strip()
            position += 1
        commands.append(re.sub(r"\s+#\s.*$", "", command))
    return commands


DOCUMENTED = sorted({(path.name, command) for path in PAGES for command in commands_of(path.read_text())})
DOCUMENTED += sorted(
    {
        (path.name, command)
        for path in (ROOT / "examples").glob("*.py")
        for command in commands_of(path.read_text().split('"""')[1])
    }
)


def covered_elsewhere(command):
    return any(re.search(pattern, command) for pattern in ELSEWHERE)


def options_of(command, capsys, method=None):
    if command == "train":
        return {
            *(action.dest for action in make_parser(method)._actions),
            *(field.name for field in fields(CEPOConfig)),
        }
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    return set(re.findall(r"^  --(\w+)", capsys.readouterr().out, re.M))


def test_commands_are_found():
    assert len(DOCUMENTED) > 50
    assert commands_of(
        "    cepo train --a \\\n        --b 1   # why\n\n```\ncepo merge\n```\ncepo text\n    other"
    ) == [
        "cepo train --a --b 1",
        "cepo merge",
    ]


@pytest.mark.parametrize(("page", "command"), DOCUMENTED)
def test_command_exists(page, command, capsys):
    program, *words = shlex.split(command)
    flags = [word[2:].partition("=")[0] for word in words if word.startswith("--")]
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for named in re.findall(r"\[(.*?)\]", command):
            assert set(named.split(",")) <= set(extras)
    elif program == "python" and words[0] == "-m" and words[1].startswith("experiments."):
        file = ROOT / f"{words[1].replace('.', '/')}.py"
        source = file.read_text() + (ROOT / "src" / "cepo" / "commands" / "options.py").read_text()
        for flag in flags:
            assert f'"--{flag}"' in source, f"{page}: --{flag}"
        for name in re.findall(r"experiments/\S+", command):
            assert (ROOT / name).exists(), f"{page}: {name}"
    elif program == "python" and words[0] != "-m":
        assert (ROOT / words[0]).is_file()
        for flag in flags:
            assert f'"--{flag}"' in (ROOT / words[0]).read_text()
    elif program == "cepo":
        method = words[words.index("--method") + 1] if "--method" in words else None
        if method and method.startswith("my_method"):  # a file of docs/methods.md, not in this repository
            method = None
        known = {
            "config",
            *options_of(words[0], capsys, method),
            "dry_run",
            "device_memory",
            "accelerate_config",
            "num_processes",
        }
        if words[0] == "compare":
            known |= options_of("train", capsys)
        assert set(flags) <= known, f"{page}: {sorted(set(flags) - known)}"
        for name in re.findall(r"(?:docs|recipes|experiments)/\S+", command):
            assert (ROOT / name).exists(), f"{page}: {name}"


def anchors_of(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


@pytest.fixture(scope="module")
def reader_folder(tmp_path_factory):
    """A folder with the models, data and files that the pages name."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("my-model", "Qwen/Qwen3-VL-2B-Instruct"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(policy_path())
    rows = load_figures("train", 24)
    for name in ("data", "my-org/geometry"):
        rows.save_to_disk(folder / name / "train")
        # A folder of splits, like a dataset on the Hub.
        load_figures("test", 8).save_to_disk(folder / name / "test")
        (folder / name / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "pictures").mkdir()
    with (folder / "rows.jsonl").open("w") as file:
        for number, row in enumerate(rows):
            row["image"].save(folder / f"pictures/{number}.png")
            line = {"prompt": row["prompt"], "image": f"pictures/{number}.png", "solution": row["solution"]}
            file.write(json.dumps(line) + "\n")
    (folder / "run.yaml").write_text("model_name_or_path: my-model\ndataset_name: rows.jsonl\noutput_dir: from-yaml\n")
    code = re.search(r"```python\n(# my_method\.py\n.*?)```", (ROOT / "docs" / "methods.md").read_text(), re.S)[1]
    (folder / "my_method.py").write_text(code)
    run_in(folder, ["train", "--output_dir", "out", "--log_completions", *QUICK_TRAIN, "--use_peft"])
    (folder / "ADAPTERS").symlink_to("out")
    return folder


def run_in(folder, words):
    return subprocess.run([sys.executable, "-m", "cepo.cli", *words], cwd=folder, capture_output=True, text=True)


RUN = [(page, command) for page, command in DOCUMENTED if not covered_elsewhere(command)]


def test_only_cepo_commands_run_here():
    assert {command.split()[0] for _, command in RUN} == {"cepo"}
    unused = [pattern for pattern in ELSEWHERE if not any(re.search(pattern, command) for _, command in DOCUMENTED)]
    assert not unused


@pytest.mark.integration
@pytest.mark.parametrize(("page", "command"), RUN)
def test_command_runs(page, command, reader_folder, tmp_path):
    words = shlex.split(command)[1:]
    more = QUICK[words[0]]
    if words[0] in ("evaluate", "explain"):  # flags of the page take precedence
        more = [flag for flag in more if flag.split("=")[0] not in words]
    if words[0] == "explain" and "--from" in words:
        more = []
    if "--statistics" in words:  # whole answers: the statistics need correct rollouts
        more = ["--num_prompts=4", "--num_generations=4"]
    if "--output_dir" not in words and words[0] in ("compare", "explain"):
        more = [*more, f"--output_dir={tmp_path / 'made'}"]
    result = run_in(reader_folder, [*words, *more])
    assert result.returncode == 0, f"{page}: {command}\n{result.stdout[-2000:]}{result.stderr[-2000:]}"
    assert "Traceback" not in result.stderr
