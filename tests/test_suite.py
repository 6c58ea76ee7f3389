"""`cepo suite`: the command line of lmms-eval, its results, and errors.

A script replaces lmms-eval here; `test_suite_lmms.py` runs lmms-eval.
"""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer

from cepo import cli, policy_path
from cepo.commands.benchmarks import BENCHMARKS, PAPER, SuiteError, average_of, read_score, select_benchmarks
from cepo.commands.suite import lmms_eval_options, make_parser
from cepo.compare.jobs import locked

# Replaces the interpreter: writes the results of lmms-eval.
STAND_IN = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
here = Path(__file__).parent
options = dict(zip(sys.argv[3::2], sys.argv[4::2]))
with (here / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(sys.argv[3:]) + "\\n")
wanted = json.loads((here / "wanted.json").read_text()).get(options["--tasks"])
if wanted is None:
    print("Traceback (most recent call last):\\nRuntimeError: no kernel image")
    sys.exit()  # with status 0, as lmms-eval does
folder = Path(options["--output_path"]) / "parent__model"
folder.mkdir(parents=True, exist_ok=True)
(folder / "20260101_000000_results.json").write_text(json.dumps(wanted))
"""


def results(task, metrics, problems, limit=None):
    return {
        "config": {"limit": limit},
        "results": {task: {f"{name},none": value for name, value in metrics.items()}},
        "n-samples": {task: {"original": problems, "effective": problems}},
        "lmms_eval_version": "0.7.3",
    }


ALL = {
    "dynamath_reasoning": results("dynamath_reasoning", {"dynamath_average": 0.5, "dynamath_worst": 0.2}, 5010),
    "logicvista_reasoning": results("logicvista_reasoning", {"acc_score": 0.25}, 448),
    "mathvision_testmini": results("mathvision_testmini", {"mathvision_standard_eval": 25.0}, 304),
    "mmmu_val": results("mmmu_val", {"mmmu_acc": 0.5}, 900),
    "wemath_testmini_reasoning": results(
        "wemath_testmini_reasoning", {"acc_score": 0.5, "wemath_strict": "41.33%", "wemath_loose": "60.00%"}, 1740
    ),
}


@pytest.fixture
def stand_in(tmp_path):
    """The folder of an environment with the replacement for lmms-eval."""
    folder = tmp_path / "environment"
    folder.mkdir()
    python = folder / "python"
    python.write_text(STAND_IN)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    (folder / "wanted.json").write_text(json.dumps(ALL))
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    output = folder.parent / "out"
    given = ["--model_name_or_path", policy_path(), "--python", str(folder / "python")]
    return ["suite", *given, "--output_dir", str(output), *more]


def calls(folder: Path) -> list[dict[str, str]]:
    """The options of each call of lmms-eval."""
    path = folder / "calls.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [dict(zip(words[::2], words[1::2], strict=False)) for words in map(json.loads, lines)]


def pairs(text: str) -> dict[str, str]:
    return dict(part.split("=") for part in text.split(","))


def test_all_five_with_vllm_and_the_papers_settings(stand_in, capsys):
    assert cli.main(arguments(stand_in)) == 0
    asked = calls(stand_in)
    assert [one["--tasks"] for one in asked] == [benchmark.task for benchmark in BENCHMARKS.values()]
    for one, name in zip(asked, BENCHMARKS, strict=True):
        assert one["--model"] == "vllm"
        assert pairs(one["--gen_kwargs"]) == {
            **{"temperature": "1.0", "top_p": "1.0", "top_k": "40", "presence_penalty": "2.0"},
            **{"max_new_tokens": "32000", "seed": "0"},
        }
        # The engine uses the larger of both values of max_new_tokens.
        model = pairs(one["--model_args"])
        assert (model["model"], model["max_new_tokens"]) == (policy_path(), "32000")
        assert one["--process_docs_parallel"] == "1"
        assert one["--output_path"] == str(stand_in.parent / "out" / name)
        assert "--limit" not in one
    found = json.loads((stand_in.parent / "out" / "suite.json").read_text())
    assert [one["value"] for one in found["benchmarks"]] == [0.5, 0.25, 0.25, 0.5, 0.5]
    assert found["average"]["value"] == pytest.approx(0.4)
    assert found["average"]["low"] < 0.4 < found["average"]["high"]
    assert "presence_penalty=2.0" in found["settings"]["mmmu"]["gen_kwargs"]
    table = (stand_in.parent / "out" / "suite.md").read_text()
    assert "| logicvista | 448 | 25.00 | [21.21, 29.21] |" in table
    assert "| average of 5 | 8402 | 40.00 |" in table
    assert "temperature 1, top-p 1, top-k 40, presence penalty 2, at most 32,000 tokens" in table
    assert "Paper, 2B: base 39.73, GRPO 41.17, OPSD 34.96, SDPO 35.70, RLSD 40.05, CEPO 43.43." in table
    assert "average of 5" in capsys.readouterr().out


def test_finished_benchmarks_are_not_run_again(stand_in, capsys):
    wanted = json.loads((stand_in / "wanted.json").read_text())
    broken = {task: found for task, found in wanted.items() if task != "mmmu_val"}
    (stand_in / "wanted.json").write_text(json.dumps(broken))
    assert cli.main(arguments(stand_in)) == 1
    printed = capsys.readouterr()
    # A failed benchmark is an error with the end of its log, without a row; the others run.
    log = stand_in.parent / "out" / "mmmu" / "log.txt"
    assert f"mmmu: lmms-eval wrote no results (exit status 0); {log} ends with" in printed.err
    assert "RuntimeError: no kernel image" in printed.err
    table = (stand_in.parent / "out" / "suite.md").read_text()
    assert "| mmmu |" not in table
    assert "| average of 5 |" not in table
    assert "No average of five without mmmu." in table
    assert "Failed: mmmu; the same command tries again." in table
    assert json.loads((stand_in.parent / "out" / "suite.json").read_text())["failed"] == ["mmmu"]
    assert len(calls(stand_in)) == 5

    (stand_in / "wanted.json").write_text(json.dumps(wanted))
    assert cli.main(arguments(stand_in)) == 0
    assert [one["--tasks"] for one in calls(stand_in)[5:]] == ["mmmu_val"]
    assert "| average of 5 |" in (stand_in.parent / "out" / "suite.md").read_text()
    assert cli.main(arguments(stand_in)) == 0
    assert len(calls(stand_in)) == 6
    assert cli.main(arguments(stand_in, "--batch_size", "3")) == 0
    capsys.readouterr()
    assert cli.main(arguments(stand_in, "--seed", "1")) == 2
    assert "holds results with other settings (gen_kwargs, seed)" in capsys.readouterr().err
    assert len(calls(stand_in)) == 6


def test_ctrl_c_terminates_lmms_eval_and_the_same_command_resumes(stand_in):
    python = stand_in / "python"
    asleep = 'wanted = json.loads((here / "wanted.json")'
    waits = '(here / "pid.txt").write_text(str(os.getpid()))\nimport time; time.sleep(600)\n'
    python.write_text(STAND_IN.replace(asleep, waits + asleep))
    process = subprocess.Popen(
        [sys.executable, "-m", "cepo.cli", *arguments(stand_in, "--tasks", "mmmu=mine")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pid = stand_in / "pid.txt"
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "stopped; the same command resumes" in errors
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    python.write_text(STAND_IN)
    (stand_in / "wanted.json").write_text(json.dumps({"mine": results("mine", {"mmmu_acc": 0.5}, 4)}))
    assert cli.main(arguments(stand_in, "--tasks", "mmmu=mine")) == 0


def test_a_folder_in_use_is_refused(stand_in, capsys):
    output = stand_in.parent / "out"
    output.mkdir()
    with locked(output):
        assert cli.main(arguments(stand_in)) == 2
    assert "is in use by other runs" in capsys.readouterr().err
    assert calls(stand_in) == []


def test_results_of_another_model_with_the_same_name_are_refused(stand_in, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(policy_path(), model)
    command = [str(model) if word == policy_path() else word for word in arguments(stand_in, "--tasks", "mmmu")]
    assert cli.main(command) == 0
    assert cli.main(command) == 0
    assert len(calls(stand_in)) == 1
    os.utime(model / "model.safetensors", ns=(1, 1))
    capsys.readouterr()
    assert cli.main(command) == 2
    assert "other settings (files)" in capsys.readouterr().err


def test_some_benchmarks_with_transformers(stand_in):
    more = ["--backend", "transformers", "--presence_penalty", "0", "--temperature", "0.5", "--top_k", "7"]
    more += ["--max_new_tokens", "64", "--seed", "3", "--batch_size", "2", "--device", "cpu", "--limit", "9"]
    more += ["--include_path", str(stand_in), "--model_args", "max_pixels=1024", "--tasks", "mmmu=mine,logicvista"]
    wanted = {"mine": results("mine", {"mmmu_acc": 0.5}, 9), **ALL}
    (stand_in / "wanted.json").write_text(json.dumps(wanted))
    assert cli.main(arguments(stand_in, *more)) == 0
    first, second = calls(stand_in)
    assert (first["--tasks"], second["--tasks"]) == ("mine", "logicvista_reasoning")
    assert first["--model"] == "qwen3_vl"
    assert pairs(first["--model_args"]) == {
        **{"pretrained": policy_path(), "device": "cpu", "device_map": "cpu", "max_pixels": "1024"},
    }
    assert pairs(first["--gen_kwargs"]) == {
        **{"temperature": "0.5", "top_p": "1.0", "top_k": "7", "max_new_tokens": "64"},
    }
    assert (first["--seed"], first["--batch_size"], first["--limit"]) == ("3", "2", "9")
    assert first["--include_path"] == str(stand_in)
    table = (stand_in.parent / "out" / "suite.md").read_text()
    assert "transformers; first 9 problems of each; temperature 0.5" in table
    assert "mmmu: task mine." in table
    assert "No average of five without dynamath, mathvision, wemath." in table


def test_adapters_are_merged_into_the_output_directory(stand_in, text_model_path, tmp_path, capsys):
    path = str(tmp_path / "adapters")
    base = AutoModelForCausalLM.from_pretrained(text_model_path)
    get_peft_model(base, LoraConfig(r=4, target_modules="all-linear")).save_pretrained(path)
    AutoTokenizer.from_pretrained(text_model_path).save_pretrained(path)
    command = [path if word == policy_path() else word for word in arguments(stand_in, "--tasks", "mmmu")]
    assert cli.main(command) == 0
    merged = stand_in.parent / "out" / "merged"
    assert pairs(calls(stand_in)[0]["--model_args"])["model"] == str(merged)
    assert AutoModelForCausalLM.from_pretrained(merged).num_parameters() > 0
    assert "Share of correct answers of " + path in (stand_in.parent / "out" / "suite.md").read_text()
    more = [word.replace("mmmu", "logicvista") for word in command]
    capsys.readouterr()
    assert cli.main(more) == 0
    assert f"merged {path} into" in capsys.readouterr().out
    # A missing base model is an error before any run.
    config = tmp_path / "adapters" / "adapter_config.json"
    asked = len(calls(stand_in))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(tmp_path / "gone")}))
    assert cli.main([word.replace("mmmu", "mathvision") for word in command]) == 2
    assert "the base model of the adapters in" in capsys.readouterr().err
    assert len(calls(stand_in)) == asked


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--backend", "transformers"], "ignores --presence_penalty 2; use --backend vllm"),
        (["--tasks", "mathvista"], "unknown benchmark 'mathvista'; choose from dynamath, logicvista"),
        (["--tasks", "mmmu,mmmu=x"], "mmmu occurs twice"),
        (["--tasks", "mmmu="], "mmmu= needs the name of a task"),
        (["--include_path", "nowhere"], "--include_path: no such folder: nowhere"),
        (["--python", "/nowhere/python"], "--python: no such program: /nowhere/python"),
        (["--num_samples", "4"], "unknown option --num_samples"),
    ],
)
def test_invalid_options(more, named, stand_in, capsys):
    assert cli.main(arguments(stand_in, *more)) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert calls(stand_in) == []


def test_a_model_is_required(capsys):
    assert cli.main(["suite"]) == 2
    assert "--model_name_or_path" in capsys.readouterr().err


def left(tmp_path, name, metrics, problems, limit=None, task=None):
    """The score of a folder of lmms-eval."""
    (benchmark,) = select_benchmarks(f"{name}={task}" if task else name).values()
    folder = tmp_path / "parent__model"
    folder.mkdir(parents=True)
    found = results(benchmark.task, metrics, problems, limit)
    (folder / "20260101_000000_results.json").write_text(json.dumps(found))
    return read_score(name, benchmark, tmp_path)


def test_the_interval_of_a_score_is_wilsons(tmp_path):
    found = left(tmp_path / "a", "logicvista", {"acc_score": 0.3}, 10)
    expected = binomtest(3, 10).proportion_ci(method="wilson")
    assert (found.value, found.problems) == (0.3, 10)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    # MathVision's score is out of 100.
    again = left(tmp_path / "b", "mathvision", {"mathvision_standard_eval": 30.0}, 10)
    assert (again.value, again.low, again.high) == pytest.approx((0.3, found.low, found.high))
    # A score that corresponds to no whole number of answers lies within its interval.
    whole = left(tmp_path / "c", "mmmu", {"mmmu_acc": 0.999}, 10)
    assert whole.low < 0.999
    assert whole.high == 1


def test_variants_of_a_question_count_as_one(tmp_path):
    found = left(tmp_path, "dynamath", {"dynamath_average": 0.75, "dynamath_worst": 0.5}, 80)
    expected = binomtest(6, 8).proportion_ci(method="wilson")
    assert (found.problems, found.low, found.high) == (80, expected.low, expected.high)


def test_results_without_the_score_are_an_error(tmp_path):
    with pytest.raises(SuiteError, match="holds no results"):
        read_score("mmmu", BENCHMARKS["mmmu"], tmp_path)
    with pytest.raises(SuiteError, match="no results of lmms-eval with mmmu_acc of mmmu_val"):
        left(tmp_path / "b", "mmmu", {"mmmu_acc": 0.5}, None)
    with pytest.raises(SuiteError, match="no results of lmms-eval with mmmu_acc of mmmu_val"):
        left(tmp_path / "a", "mmmu", {"mmmu_acc": "N/A"}, 900)


def test_the_average_of_independent_scores(tmp_path):
    scores = [
        left(tmp_path / str(correct), "logicvista", {"acc_score": correct / 100}, 100) for correct in (20, 50, 80)
    ]
    mean, low, high = average_of(scores)
    assert mean == pytest.approx(0.5)
    assert low == pytest.approx(0.5 - sum((score.value - score.low) ** 2 for score in scores) ** 0.5 / 3)
    # Of three equal scores the interval is narrower by the root of three.
    same = [scores[1]] * 3
    assert average_of(same)[2] - 0.5 == pytest.approx((scores[1].high - 0.5) / 3**0.5)
    assert high - low < max(score.high - score.low for score in scores)


def test_the_defaults_are_the_papers():
    assert (PAPER["2B"]["CEPO"], PAPER["2B"]["base"], PAPER["4B"]["CEPO"]) == (43.43, 39.73, 60.56)
    given = make_parser().parse_args(["--model_name_or_path", "m"])
    assert (given.temperature, given.top_p, given.top_k, given.presence_penalty) == (1.0, 1.0, 40, 2.0)
    assert (given.max_new_tokens, given.backend) == (32000, "vllm")


def test_the_engine_gets_max_new_tokens():
    given = make_parser().parse_args(["--model_name_or_path=m", "--max_new_tokens=16"])
    options = lmms_eval_options("mmmu_val", vars(given))
    assert pairs(options["--model_args"])["max_new_tokens"] == "16"
