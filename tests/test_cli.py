"""The real command line: its output, its files, and one line for every error."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cepo import cli, policy_path
from cepo.trainer.arguments import parse
from tests.support.command_line import EVAL, SMALL, command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The output directory and stdout of a small run in a process."""
    folder = tmp_path_factory.mktemp("run")
    result = subprocess.run(
        command("train", *SMALL, *EVAL, "--output_dir", str(folder / "out")),
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr
    return folder / "out", result.stdout


def test_train_prints_accuracy_and_progress(trained):
    _, printed = trained
    for when in ("before", "after"):
        assert f"held-out accuracy {when} training, greedy:" in printed
    assert printed.count("  sampled, 3 problems: ") == 2
    assert printed.count("pass@2 ") == 2
    assert "entropy of content tokens" in printed
    assert "step 1/2  reward" in printed
    assert "lambda 0.50" in printed
    assert "left" in printed


def test_train_writes_model_logs_summary_and_curves(trained):
    folder, _ = trained
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["method"], summary["steps"], summary["seed"]) == ("cepo", 2, 42)
    for when in ("before", "after"):
        greedy, sampled = summary[when]["greedy"], summary[when]["sampled"]
        assert (greedy["temperature"], greedy["problems"]) == (0.0, 8)
        assert (sampled["samples"], sampled["problems"], sampled["pass_at"]["k"]) == (2, 3, 2)
        for accuracy in (greedy, sampled, sampled["pass_at"]):
            assert accuracy["low"] <= accuracy["accuracy"] <= accuracy["high"]
        assert sampled["content_entropy"]["tokens"] < sampled["entropy"]["tokens"]
    assert [point["step"] for point in summary["accuracy"]] == [0, 2]
    assert summary["accuracy"][0]["accuracy"] == summary["before"]["greedy"]["accuracy"]
    seconds = summary["seconds"]
    parts = [seconds[part] for part in ("generation", "teachers", "update")]
    assert all(part >= 0 for part in parts)
    assert parts[0] > 0
    assert parts[2] > 0
    assert sum(parts) < seconds["total"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "model.safetensors").is_file()
    assert (folder / "trainer_state.json").is_file()


def test_evaluate_reports_accuracy_with_intervals(trained, capsys, tmp_path):
    folder, _ = trained
    output = tmp_path / "deep" / "evaluation.json"
    arguments = [
        "evaluate",
        "--model_name_or_path",
        str(folder),
        "--num_problems=6",
        "--output_dir",
        str(output.parent),
    ]
    more = ["--max_completion_length=24", "--temperatures=0,0.5,1", "--num_samples=3"]
    assert cli.main([*arguments, *more]) == 0
    greedy, *sampled = json.loads(output.read_text())["temperatures"]
    assert (greedy["temperature"], greedy["samples"], "pass_at" in greedy) == (0.0, 1, False)
    assert [(one["temperature"], one["samples"], one["pass_at"]["k"]) for one in sampled] == [(0.5, 3, 3), (1.0, 3, 3)]
    for one in (greedy, *sampled):
        assert one["problems"] == 6
        assert 0 <= one["low"] <= one["accuracy"] <= one["high"] <= 1
    # A lower temperature is a sharper distribution.
    assert sampled[0]["entropy"]["nats"] < sampled[1]["entropy"]["nats"]
    printed = capsys.readouterr().out
    assert "6 problems, 95 % intervals" in printed
    assert "pass@3" in printed


def test_evaluation_on_one_file_with_the_shipped_policy(tmp_path, monkeypatch, capsys):
    """A file has one split, on which the model may have been trained."""
    monkeypatch.chdir(tmp_path)
    row = {"prompt": [{"role": "user", "content": "What is a?"}], "solution": 7}
    Path("rows.jsonl").write_text("\n".join([json.dumps(row)] * 2))
    arguments = ["--dataset_name=rows.jsonl", "--max_completion_length=4", "--temperatures=0"]
    assert cli.main(["evaluate", *arguments, "--model_name_or_path=figures"]) == 0
    assert "rows.jsonl has one split: this is no held-out accuracy" in capsys.readouterr().out
    assert json.loads(Path("evaluation.json").read_text())["temperatures"][0]["problems"] == 2
    assert cli.main(["train", "--dataset_name=rows.jsonl"]) == 2
    assert "a name on the Hub, or figures, the shipped policy" in capsys.readouterr().err


def test_flags_override_the_yaml_file(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"method: grpo\nmax_steps: 1\nper_device_train_batch_size: 8\nnum_generations: 4\nmax_completion_length: 8\n"
        f"figures_problems: 8\neval_problems: 0\nseed: 3\noutput_dir: {tmp_path / 'out'}\n"
    )
    assert cli.main(["train", "--config", str(config), "--seed", "5"]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["method"], summary["seed"], summary["before"]) == ("grpo", 5, None)
    assert "grpo on figures" in capsys.readouterr().out


def test_flags_override_a_preset(tmp_path):
    paper = parse(["--preset", "paper", "--output_dir", str(tmp_path)])[1]
    assert paper.negative_reference == "lowest_reward"
    config = tmp_path / "run.yaml"
    config.write_text("preset: paper\nevidence_steps: 7\n")
    args = parse(["--config", str(config), "--negative_reference", "own"])[1]
    assert (args.negative_reference, args.evidence_steps) == ("own", 7)


def test_a_local_model_and_dataset_of_files(tmp_path, text_model_path, figures):
    """JSON lines with paths of image files, and the shipped policy by its folder."""
    figures[0]["image"].save(tmp_path / "one.png")
    row = {"prompt": figures[0]["prompt"], "solution": figures[0]["solution"], "image": "one.png"}
    data = tmp_path / "data.jsonl"
    data.write_text(f"{json.dumps(row)}\n" * 2)
    options = [
        "--max_steps=1",
        "--per_device_train_batch_size=4",
        "--num_generations=2",
        "--max_completion_length=8",
        "--bf16=false",
        "--report_to=none",
    ]
    vlm = ["--model_name_or_path", policy_path(), "--dataset_name", str(data), "--output_dir", str(tmp_path / "vlm")]
    assert cli.main(["train", *vlm, *options]) == 0
    row.pop("image")
    data.write_text(f"{json.dumps(row)}\n" * 2)
    text = [
        "--model_name_or_path",
        text_model_path,
        "--dataset_name",
        str(data),
        "--output_dir",
        str(tmp_path / "text"),
    ]
    assert cli.main(["train", *text, *options, "--use_peft"]) == 0
    assert (tmp_path / "text" / "adapter_model.safetensors").is_file()


def test_accuracy_of_adapters_is_measured(tmp_path):
    """Greedy and sampled, with the entropy of sampled answers."""
    small = ["--max_steps=1", "--per_device_train_batch_size=8", "--figures_problems=16", "--eval_problems=4"]
    small += ["--max_completion_length=16", "--eval_samples=2", "--eval_sampled_problems=2", "--report_to=none"]
    assert cli.main(["train", *small, "--use_peft", "--lora_r=4", "--output_dir", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["before"]["sampled"]["entropy"]["nats"] > 0


PROMPT = [{"role": "user", "content": "How many?"}]
GOOD = {"prompt": PROMPT, "solution": "1"}
UNSOLVED = {"prompt": PROMPT, "answer": "1"}


@pytest.fixture
def without_template(tmp_path, text_model_path):
    """The text model without its chat template."""
    return str(shutil.copytree(text_model_path, tmp_path / "no-template", ignore=lambda *_: ["chat_template.jinja"]))


# Rows of a dataset, files of options, arguments and words of the message.
ERRORS = {
    "unknown preset": ([], "", ["--preset", "papers"], ["preset", "'papers'", "paper"]),
    "no solution column": ([UNSOLVED], "", [], ["solution", "answer"]),
    "empty solution": ([GOOD, {**GOOD, "solution": ""}], "", [], ["row 1", "solution"]),
    "missing image": ([GOOD | {"image": "gone.png"}], "", [], ["row 0", "gone.png"]),
    "no chat template": ([GOOD] * 8, "", ["--model_name_or_path", "NO_TEMPLATE"], ["chat template"]),
    "no such model": ([], "", ["--model_name_or_path", "./nowhere"], ["./nowhere"]),
    "a folder without a model": ([], "", ["--model_name_or_path", "."], ["config.json"]),
    "no such dataset": ([], "", ["--model_name_or_path", "MODEL", "--dataset_name", "./no.jsonl"], ["./no.jsonl"]),
    "no dataset on the hub": ([], "", ["--model_name_or_path", "MODEL", "--dataset_name", "nobody/no"], ["nobody/no"]),
    "no model": ([], "", ["--dataset_name", "someone/something"], ["--model_name_or_path"]),
    "unknown method": ([], "", ["--method", "ppo"], ["ppo", "cepo"]),
    "unknown option": ([], "", ["--evidence_clipp", "0.2"], ["--evidence_clipp", "--evidence_clip"]),
    "a second value": ([], "", ["--report_to", "none", "tensorboard"], ["unexpected 'tensorboard'", "--config"]),
    "no such YAML": ([], "", ["--config", "none.yaml"], ["none.yaml"]),
    "clip out of range": ([], "", ["--evidence_clip", "1.5"], ["evidence_clip", "1.5"]),
    "not divisible": ([], "", ["--num_generations", "7"], ["num_generations", "7"]),
    "unknown reward": ([], "", ["--reward_funcs", "praise"], ["praise"]),
    "no checkpoint": ([], "", ["--resume_from_checkpoint", "./nowhere"], ["resume_from_checkpoint", "./nowhere"]),
    "config without a file": ([], "", ["--config"], ["--config"]),
    "grpo without solutions": ([UNSOLVED], "", ["--method", "grpo"], ["solution"]),
    "too few rows": ([GOOD], "", ["--per_device_train_batch_size=16"], ["1 rows"]),
    "unknown difficulty": ([], "", ["--dataset_config", "harder"], ["harder", "hard"]),
    "empty evaluation batch": ([], "", ["--eval_batch_size", "0"], ["eval_batch_size must be at least 1, got 0"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_invalid_option_is_an_error_on_one_line(
    case, tmp_path, text_model_path, without_template, monkeypatch, capsys
):
    rows, config, arguments, words = ERRORS[case]
    monkeypatch.chdir(tmp_path)
    models = {"MODEL": text_model_path, "NO_TEMPLATE": without_template}
    arguments = [models.get(argument, argument) for argument in arguments]
    if rows:
        Path("data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        arguments = ["--model_name_or_path", text_model_path, "--bf16=false", "--dataset_name=data.jsonl", *arguments]
    if config:
        Path("run.yaml").write_text(config)
        arguments = [*arguments, "--config", "run.yaml"]
    assert cli.main(["train", "--output_dir=out", "--figures_problems=8", *arguments]) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out
    (error,) = [line for line in printed.err.splitlines() if line.startswith("cepo: error:")]
    assert all(word in error for word in words), error
    assert not list(Path("out").glob("*"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["evaluate", "--model_name_or_path", "./nowhere"], "./nowhere"),
        (["evaluate", "--num_problems", "0"], "at least 1"),
        (["explain", "--index", "-1"], "--index: must not be negative"),
        (["explain", "--show", "cepo best"], "choose one of grpo, 'cepo lowest_reward'"),
        (["explain", "--hint_template", "no place"], "{answer}"),
        (["explain", "--tau", "1"], "unknown option --tau"),
        (["explain", "--method", "vppo", "--prefix_margn", "1"], "did you mean --prefix_margin?"),
        (
            ["explain", "--method", "examples.new_method:METHOD", "--show", "rlsd", "--evidence_clip", "2"],
            "evidence_clip",
        ),
        (["explain", "--output", "x.json"], "--output is for --statistics"),
        (["explain", "--statistics", "--terminal"], "leave out --terminal"),
        (["explain", "--statistics", "--show", "grpo"], "grpo has no teachers"),
        (["explain", "--evidence_clip", "1.5"], "evidence_clip"),
        (["explain", "--from", "./nowhere"], "--from: no such folder: ./nowhere"),
        (["explain", "--statistics", "--num_generations", "1"], "at least 2"),
        (["explain", "--dataset_config", "odd"], "easy, default, long, hard, readings, arithmetic, sparse, blank"),
        (["evaluate", "--temperatures", "1,-1"], "must be 0"),
        (["evaluate", "--num_problem", "3"], "unknown option --num_problem; did you mean --num_problems?"),
        (["fly"], "fly"),
    ],
)
def test_errors_of_other_commands(arguments, named, capsys):
    try:
        status = cli.main(arguments)
    except SystemExit as stop:  # of argparse
        status = stop.code
    assert status == 2
    assert named in capsys.readouterr().err


MISSING = "missing-model"  # without a slash: a folder, or a model of the Hub


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["train", "--figures_problems=8", "--model_name_or_path"], "model_name_or_path"),
        (["train", "--method=distilled_rl", *SMALL, "--teacher_model_name_or_path"], "teacher_model_name_or_path"),
        (["explain", "--model_name_or_path"], "model_name_or_path"),
        (["explain", "--teacher_model_name_or_path"], "teacher_model_name_or_path"),
        (["evaluate", "--num_problems=4", "--model_name_or_path"], "model_name_or_path"),
    ],
)
def test_a_model_neither_here_nor_in_the_cache(arguments, option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*arguments, MISSING]) == 2
    printed = capsys.readouterr()
    (error,) = [line for line in printed.err.splitlines() if line.startswith("cepo: error:")]
    assert error.startswith(f"cepo: error: {option}: cannot load {MISSING}: ")
    assert "Traceback" not in printed.err + printed.out
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_help(capsys):
    for flag, text in (("--help", "cepo train"), ("--version", "cepo ")):
        with pytest.raises(SystemExit) as stop:
            cli.main([flag])
        assert stop.value.code == 0
        assert text in capsys.readouterr().out
    assert cli.main(["train", "--help"]) == 0
    page = capsys.readouterr().out
    assert "--evidence_clip" in page
    assert "--model_name_or_path" in page


def test_help_imports_neither_torch_nor_trl():
    code = "import sys; from cepo.cli import make_parser; make_parser().print_help(); print(sorted(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    modules = printed.splitlines()[-1]
    assert "'cepo.cli'" in modules
    assert not [name for name in ("torch", "trl", "transformers", "datasets") if f"'{name}'" in modules]


def test_ctrl_c_saves_a_checkpoint_that_can_be_resumed(tmp_path):
    """The first Ctrl-C finishes the step and saves; the run resumes from there."""
    arguments = ["train", *SMALL, "--max_steps=400", "--save_strategy=no", "--eval_problems=0", "--output_dir=out"]
    process = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    for line in process.stdout:
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + 120
    printed, errors = process.communicate(timeout=deadline - time.monotonic())
    assert process.returncode == 130
    assert "Traceback" not in errors
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    assert f"--resume_from_checkpoint out/{checkpoint.name}" in printed
    step = int(checkpoint.name.rpartition("-")[2])
    resumed = subprocess.run(
        command(*arguments, f"--max_steps={step + 1}", f"--resume_from_checkpoint=out/{checkpoint.name}"),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert f"step {step + 1}/{step + 1}" in resumed.stdout


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """The page of one group, sampled from the shipped policy."""
    path = tmp_path_factory.mktemp("explain") / "deep" / "explain.html"
    assert cli.main(["explain", "--index=1", "--num_generations=4", "--output_dir", str(path.parent)]) == 0
    return path


def test_explain_writes_a_page(explained):
    page = explained.read_text(encoding="utf-8")
    assert "cepo own_or_mixture of 2" in page
    assert "data:image/png;base64," in page
    assert page.count('"advantage":') == 4


def test_explain_in_the_terminal(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["explain", "--index=1", "--num_generations=4", "--terminal", "--show", "cepo own"]) == 0
    printed = capsys.readouterr().out
    assert "r+ (" in printed
    assert "rollout 4" in printed
    assert list(tmp_path.iterdir()) == []


def test_explain_the_rollouts_of_a_run(tmp_path, capsys):
    run = str(tmp_path / "run")
    options = ["--log_completions", "--num_completions_to_print=0", "--credit_page_steps=1", "--eval_problems=0"]
    assert cli.main(["train", *SMALL, *options, "--max_completion_length=176", "--output_dir", run]) == 0
    assert capsys.readouterr().out.count("No held-out problems") == 1
    assert sorted(path.name for path in (tmp_path / "run" / "credit").iterdir()) == [
        "step-00000.html",
        "step-00001.html",
    ]
    output = tmp_path / "explain.html"
    # A method that reads token labels, with a constant.
    own = ["--method", "vppo", "--prefix_value=0.25", "--prefix_margin=0"]
    assert cli.main(["explain", "--from", run, "--step=0", *own, "--output_dir", str(tmp_path)]) == 0
    page = output.read_text(encoding="utf-8")
    assert "sampled at step 0" in page
    assert "prefix_value 0.25" in page
    capsys.readouterr()
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(about | {"dataset_name": "rows.jsonl"}))
    assert cli.main(["explain", "--from", run]) == 2
    assert "no such file or folder: rows.jsonl. This is the dataset of the run" in capsys.readouterr().err
    assert cli.main(["explain", "--from", run, "--step=9"]) == 2
    assert "it has 0, 1" in capsys.readouterr().err


def test_explain_reports_groups_without_advantages(tmp_path, monkeypatch, capsys):
    """A group without a correct rollout: GRPO and CEPO give no advantage, other methods do."""
    (tmp_path / "verifier.py").write_text("def zero(completions, **columns):\n    return [0.0] * len(completions)\n")
    monkeypatch.syspath_prepend(tmp_path)
    common = ["explain", "--num_generations=2", "--reward_funcs", "verifier.zero", "--output_dir", str(tmp_path)]
    assert cli.main(common) == 0
    printed = capsys.readouterr().out
    assert "0 of 2 rollouts are correct" in printed
    assert "No token has an advantage under cepo own_or_mixture of 2; try another --index or --seed." in printed
    own = [*common, "--method", "examples.new_method:METHOD", "--penalty=0.2"]
    assert cli.main([*own, "--show", "grpo"]) == 0
    assert "No token has an advantage under grpo" in capsys.readouterr().out
    assert cli.main(own) == 0
    assert "No token has an advantage" not in capsys.readouterr().out
    page = (tmp_path / "explain.html").read_text(encoding="utf-8")
    assert "penalty 0.2" in page
    assert '"advantages":[-0.2,-0.2,' in page
