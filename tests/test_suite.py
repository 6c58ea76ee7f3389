"""`cepo evaluate --suite paper`: what lmms-eval is asked, what is read of its files, what is refused.

A script stands in for it here; `test_suite_lmms.py` has lmms-eval itself.
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
from datasets import Dataset, load_dataset
from scipy.stats import binomtest

from cepo import cli, policy_path
from cepo.compare.jobs import locked
from cepo.suite.benchmarks import BENCHMARKS, PAPER, Benchmark, Sampling, chosen
from cepo.suite.results import SAMPLES, SCORE, accuracy_of, average_of, read_score
from cepo.suite.running import Settings, SuiteError, command_of, fingerprint, how_to_get, is_done, missing_datasets
from cepo.suite.table import markdown

# In place of an interpreter: it says that nothing is missing, or does what lmms-eval would.
STAND_IN = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
here = Path(__file__).parent
if sys.argv[1] == "-c":
    print((here / "missing.txt").read_text() if (here / "missing.txt").exists() else "")
    sys.exit()
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
with (here / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
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
def stand_in(tmp_path, monkeypatch):
    """A stand-in for the environment that has lmms-eval, with the data of all five in the cache; its folder."""
    folder = tmp_path / "environment"
    folder.mkdir()
    python = folder / "python"
    python.write_text(STAND_IN)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    (folder / "wanted.json").write_text(json.dumps(ALL))
    cache = tmp_path / "datasets"
    for name in ("kcz358___dyna_math", "lscpku___logic_vista", "MathLLMs___math_vision", "We-Math___we-math"):
        prepared = cache / name / "default" / "0.0.0" / "hash"
        prepared.mkdir(parents=True)
        (prepared / "part.arrow").write_bytes(b"")
    prepared = cache / "lmms-lab-encoder___mmmu" / "default" / "0.0.0" / "hash"
    prepared.mkdir(parents=True)
    (prepared / "part.arrow").write_bytes(b"")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    return folder


def arguments(folder: Path, *more: str) -> list[str]:
    output = folder.parent / "out"
    given = ["--suite", "paper", "--model_name_or_path", policy_path(), "--python", str(folder / "python")]
    return ["evaluate", *given, "--output_dir", str(output), *more]


def calls(folder: Path) -> list[dict[str, str]]:
    """What the stand-in was asked, each as options."""
    path = folder / "calls.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [dict(zip(words[1::2], words[2::2], strict=False)) for words in map(json.loads, lines)]


def pairs(text: str) -> dict[str, str]:
    return dict(part.split("=") for part in text.split(","))


def test_all_five_by_vllm_with_the_papers_settings(stand_in, capsys):
    assert cli.main(arguments(stand_in)) == 0
    asked = calls(stand_in)
    assert [one["--tasks"] for one in asked] == [benchmark.task for benchmark in BENCHMARKS.values()]
    for one, name in zip(asked, BENCHMARKS, strict=True):
        assert one["--model"] == "vllm"
        assert pairs(one["--gen_kwargs"]) == {
            **{"temperature": "1.0", "top_p": "1.0", "top_k": "40", "presence_penalty": "2.0"},
            **{"max_new_tokens": "32000", "seed": "0"},
        }
        # The engine takes the larger of the two, so a smaller one has to be said twice.
        model = pairs(one["--model_args"])
        assert (model["model"], model["max_new_tokens"]) == (policy_path(), "32000")
        assert one["--process_docs_parallel"] == "1"
        assert one["--output_path"] == str(stand_in.parent / "out" / name)
        assert "--limit" not in one
    found = json.loads((stand_in.parent / "out" / "suite.json").read_text())
    assert [one["value"] for one in found["benchmarks"]] == [0.5, 0.25, 0.25, 0.5, 0.5]
    assert found["average"]["value"] == pytest.approx(0.4)
    assert found["average"]["low"] < 0.4 < found["average"]["high"]
    assert found["settings"]["sampling"]["presence_penalty"] == 2.0
    table = (stand_in.parent / "out" / "suite.md").read_text()
    assert "| logicvista | 448 | 25.00 | [21.21, 29.21] |" in table
    assert "| average of 5 | 8402 | 40.00 |" in table
    assert "temperature 1, top-p 1, top-k 40, presence penalty 2, up to 32,000 tokens" in table
    assert "strict (wemath_strict): 41.33 %" in table
    assert "| 2B | 39.73 | 41.17 | 34.96 | 35.70 | 40.05 | 43.43 |" in table
    assert "average of 5" in capsys.readouterr().out


def test_what_was_run_is_not_run_again(stand_in, capsys):
    wanted = json.loads((stand_in / "wanted.json").read_text())
    broken = {task: found for task, found in wanted.items() if task != "mmmu_val"}
    (stand_in / "wanted.json").write_text(json.dumps(broken))
    assert cli.main(arguments(stand_in)) == 1
    printed = capsys.readouterr()
    # The one that failed is an error with the end of its log, and no row; the others were run all the same.
    log = stand_in.parent / "out" / "mmmu" / "log.txt"
    assert f"mmmu: lmms-eval left no results (exit status 0); its log is {log}, which ends" in printed.err
    assert "RuntimeError: no kernel image" in printed.err
    table = (stand_in.parent / "out" / "suite.md").read_text()
    assert "| mmmu |" not in table
    assert "| average of 5 |" not in table
    assert "No average of five: mmmu not run or failed." in table
    assert json.loads((stand_in.parent / "out" / "suite.json").read_text())["failed"] == ["mmmu"]
    assert len(calls(stand_in)) == 5

    (stand_in / "wanted.json").write_text(json.dumps(wanted))
    assert cli.main(arguments(stand_in)) == 0
    assert [one["--tasks"] for one in calls(stand_in)[5:]] == ["mmmu_val"]
    assert "| average of 5 |" in (stand_in.parent / "out" / "suite.md").read_text()
    assert cli.main(arguments(stand_in)) == 0
    assert len(calls(stand_in)) == 6
    # Where it runs does not matter, how does.
    assert cli.main(arguments(stand_in, "--batch_size", "3")) == 0
    capsys.readouterr()
    assert cli.main(arguments(stand_in, "--seed", "1")) == 2
    assert "holds results with other settings (seed)" in capsys.readouterr().err
    assert len(calls(stand_in)) == 6


def test_ctrl_c_ends_what_was_started_and_the_same_command_goes_on(stand_in):
    """The signal is for `cepo` alone, which ends lmms-eval and what that has started."""
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
    assert "stopped; the same command goes on with the benchmarks that were not done" in errors
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    python.write_text(STAND_IN)
    (stand_in / "wanted.json").write_text(json.dumps({"mine": results("mine", {"mmmu_acc": 0.5}, 4)}))
    assert cli.main(arguments(stand_in, "--tasks", "mmmu=mine")) == 0


def test_two_commands_do_not_work_in_one_folder(stand_in, capsys):
    output = stand_in.parent / "out"
    output.mkdir()
    with locked(output):
        assert cli.main(arguments(stand_in)) == 2
    assert "runs are under way in" in capsys.readouterr().err
    assert calls(stand_in) == []


def test_results_of_another_model_under_the_same_name_are_not_taken(tmp_path):
    model, folder = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    (model / "config.json").write_text("{}")
    weights = model / "model.safetensors"
    weights.write_bytes(b"one")
    wanted = {"files": fingerprint(str(model))}
    (folder / "x").mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(wanted))
    assert not is_done(folder, wanted)  # no results yet
    (folder / "x" / "1_results.json").write_text("{}")
    assert is_done(folder, wanted)
    weights.write_bytes(b"two, longer")
    with pytest.raises(SuiteError, match=r"other settings \(files\)"):
        is_done(folder, {"files": fingerprint(str(model))})


def test_some_benchmarks_by_transformers(stand_in):
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
    assert "transformers; the first 9 problems of each; temperature 0.5" in table
    assert "Not the stock tasks: mmmu." in table
    assert "No average of five: dynamath, mathvision, wemath not run." in table


def test_adapters_are_merged_once_and_again_when_they_change(stand_in, text_model_path, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    from .test_merge import adapters

    path = adapters(tmp_path / "adapters", text_model_path, AutoModelForCausalLM)
    command = [path if word == policy_path() else word for word in arguments(stand_in, "--tasks", "mmmu")]
    assert cli.main(command) == 0
    merged = stand_in.parent / "out" / "merged"
    assert pairs(calls(stand_in)[0]["--model_args"])["model"] == str(merged)
    assert AutoModelForCausalLM.from_pretrained(merged).num_parameters() > 0
    assert "Share of right answers of " + path in (stand_in.parent / "out" / "suite.md").read_text()
    more = [word.replace("mmmu", "logicvista") for word in command]
    capsys.readouterr()
    assert cli.main(more) == 0
    assert "is merged already" in capsys.readouterr().out
    # A model that is not there is a mistake, and nothing is asked.
    config = tmp_path / "adapters" / "adapter_config.json"
    kept, asked = config.read_text(), len(calls(stand_in))
    config.write_text(json.dumps(json.loads(kept) | {"base_model_name_or_path": str(tmp_path / "gone")}))
    assert cli.main([word.replace("mmmu", "mathvision") for word in command]) == 2
    assert "gone, the model of these adapters" in capsys.readouterr().err
    assert len(calls(stand_in)) == asked
    config.write_text(kept)
    weights = tmp_path / "adapters" / "adapter_model.safetensors"
    os.utime(weights, ns=(1, 1))
    assert cli.main([word.replace("mmmu", "mathvision") for word in command]) == 0
    assert f"merged {path} into" in capsys.readouterr().out


def test_missing_data_is_named_with_the_commands_that_get_it(stand_in, monkeypatch, tmp_path, capsys):
    assert missing_datasets(BENCHMARKS.values()) == []
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "nothing")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert cli.main(arguments(stand_in)) == 2
    error = capsys.readouterr().err
    for benchmark in BENCHMARKS.values():
        assert f"hf download --repo-type dataset {benchmark.dataset}\n" in error
        assert f"datasets.load_dataset('{benchmark.dataset}')" in error
    assert calls(stand_in) == []
    # A download alone serves only those who can ask the Hub what belongs to it.
    snapshot = tmp_path / "hub" / "datasets--lscpku--LogicVista" / "snapshots" / "hash"
    snapshot.mkdir(parents=True)
    (snapshot / "test.parquet").write_bytes(b"")
    logicvista = [BENCHMARKS["logicvista"]]
    assert missing_datasets(logicvista) == ["lscpku/LogicVista"]
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    assert missing_datasets(logicvista) == []
    assert missing_datasets([BENCHMARKS["mmmu"]]) == ["lmms-lab-encoder/MMMU"]
    # The user's own task brings its own data.
    assert missing_datasets(chosen("mmmu=mine").values()) == []
    assert how_to_get([]) == ""


def test_what_counts_as_there_is_what_datasets_loads_offline(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    file = tmp_path / "rows.parquet"
    Dataset.from_list([{"question": "?"}]).to_parquet(file)
    load_dataset("parquet", data_files={"testmini": str(file)}, cache_dir=cache)
    (made,) = (path.parent for path in cache.glob("parquet/*/*/*/*.arrow"))
    for name, folder in (("MathLLMs/MathVision", "MathLLMs___math_vision"), ("lscpku/LogicVista", None)):
        (benchmark,) = (one for one in BENCHMARKS.values() if one.dataset == name)
        if folder is None:
            assert missing_datasets([benchmark]) == [name]
            with pytest.raises(ConnectionError):
                load_dataset(name, cache_dir=cache)
            continue
        prepared = cache / folder / "default" / "0.0.0" / "hash"
        shutil.copytree(made, prepared)
        (prepared / "parquet-testmini.arrow").rename(prepared / "math_vision-testmini.arrow")
        assert missing_datasets([benchmark]) == []
        assert load_dataset(name, token=True, cache_dir=cache)["testmini"]["question"] == ["?"]


@pytest.mark.parametrize(
    ("more", "missing", "named"),
    [
        (["--backend", "transformers"], "", "would drop --presence_penalty 2 without a word; take --backend vllm"),
        (["--tasks", "mathvista"], "", "there is no benchmark 'mathvista'; the five are dynamath, logicvista"),
        (["--tasks", "mmmu,mmmu=x"], "", "mmmu is named twice"),
        (["--tasks", "mmmu="], "", "no task stands behind mmmu="),
        (["--include_path", "nowhere"], "", "--include_path: there is no such folder: nowhere"),
        (["--python", "/nowhere/python"], "", "--python: cannot run /nowhere/python"),
        ([], "lmms_eval openai vllm", "the suite needs lmms_eval, openai: pip install 'cepo[eval]'"),
        ([], "vllm", "--backend vllm needs vllm, which is not installed: pip install vllm"),
        (["--suite", "other"], "", "invalid choice: 'other'"),
        (["--num_samples", "4"], "", "unknown option --num_samples"),
    ],
)
def test_mistakes(more, missing, named, stand_in, capsys):
    (stand_in / "missing.txt").write_text(missing)
    assert cli.main(arguments(stand_in, *more)) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert calls(stand_in) == []


def test_the_model_is_needed_and_has_to_be_one_that_the_backend_reads(stand_in, text_model_path, capsys):
    assert cli.main(["evaluate", "--suite=paper"]) == 2
    assert "--model_name_or_path" in capsys.readouterr().err
    command = [text_model_path if word == policy_path() else word for word in arguments(stand_in)]
    assert cli.main([*command, "--backend", "transformers", "--presence_penalty", "0"]) == 2
    assert "reads models of qwen3_vl" in capsys.readouterr().err


def test_help_of_both_forms(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    assert "--suite" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--suite", "paper", "--help"])
    printed = capsys.readouterr().out
    for option in ("--presence_penalty", "--limit", "--include_path", "--backend"):
        assert option in printed


def left(tmp_path, benchmark, metrics, rows, problems=None, limit=None):
    """A folder such as lmms-eval leaves, with these verdicts on single answers."""
    folder = tmp_path / "parent__model"
    folder.mkdir(parents=True)
    found = results(benchmark.task, metrics, problems or len(rows), limit)
    (folder / "20260101_000000_results.json").write_text(json.dumps(found))
    lines = [json.dumps({"doc_id": index, **row}) for index, row in enumerate(rows)]
    (folder / f"20260101_000000_samples_{benchmark.task}.jsonl").write_text("\n".join(lines) + "\n")
    return read_score(benchmark, tmp_path)


def test_verdicts_on_answers_give_wilsons_interval(tmp_path):
    rows = [{"acc_score": float(index < 3)} for index in range(10)]
    found = left(tmp_path / "a", BENCHMARKS["logicvista"], {"acc_score": 0.3}, rows)
    expected = binomtest(3, 10).proportion_ci(method="wilson")
    assert (found.value, found.problems, found.basis) == (0.3, 10, SAMPLES)
    assert found.interval == pytest.approx((expected.low, expected.high))
    # MathVision's are lists, and its score is out of 100.
    rows = [{"mathvision_standard_eval": {"scores": [index < 3]}} for index in range(10)]
    again = left(tmp_path / "b", BENCHMARKS["mathvision"], {"mathvision_standard_eval": 30.0}, rows)
    assert (again.value, again.basis) == (0.3, SAMPLES)
    assert again.interval == pytest.approx(found.interval)


def test_variants_of_a_question_count_together(tmp_path):
    """Three of four questions right in both variants: as sure as four answers, not as eight."""
    rows = [
        {"dynamath_average": {"acc": float(index < 6), "question_id": index, "variant_id": index // 2}}
        for index in range(8)
    ]
    found = left(tmp_path, BENCHMARKS["dynamath"], {"dynamath_average": 0.75}, rows)
    assert (found.value, found.basis) == (0.75, SAMPLES)
    eight = binomtest(6, 8).proportion_ci(method="wilson")
    assert found.interval[0] < eight.low
    assert accuracy_of(rows, "dynamath_average").values == (1.0, 1.0, 1.0, 0.0)


def test_without_verdicts_the_interval_is_from_score_and_number(tmp_path):
    rows = [{"mmmu_acc": {"id": str(index), "parsed_pred": ["A"], "answer": "A"}} for index in range(20)]
    found = left(tmp_path / "a", BENCHMARKS["mmmu"], {"mmmu_acc": 0.4}, rows)
    expected = binomtest(8, 20).proportion_ci(method="wilson")
    assert found.basis == SCORE
    assert found.interval == pytest.approx((expected.low, expected.high))
    # Verdicts that do not add up to the score are not the ones it was made of.
    rows = [{"acc_score": 1.0}] * 10
    other = left(tmp_path / "b", BENCHMARKS["logicvista"], {"acc_score": 0.3}, rows)
    assert (other.value, other.basis) == (0.3, SCORE)


def test_scores_over_families_are_said_of_the_whole_benchmark_alone(tmp_path):
    metrics = {"acc_score": 0.5, "wemath_strict": "99.90%", "wemath_loose": "99.90%"}
    few = left(tmp_path / "a", BENCHMARKS["wemath"], metrics, [], problems=7, limit=7)
    assert few.others == {}
    own = left(tmp_path / "c", chosen("wemath=mine")["wemath"], metrics, [], problems=7)
    assert own.others == {}
    whole = left(tmp_path / "b", BENCHMARKS["wemath"], metrics, [], problems=1740)
    assert whole.others == pytest.approx({"wemath_strict": 0.999, "wemath_loose": 0.999})


def test_results_without_the_score_are_an_error(tmp_path):
    with pytest.raises(SuiteError, match="holds no results"):
        read_score(BENCHMARKS["mmmu"], tmp_path)
    with pytest.raises(SuiteError, match="does not say how many problems"):
        left(tmp_path / "b", BENCHMARKS["mmmu"], {"mmmu_acc": 0.5}, [])
    with pytest.raises(SuiteError, match="has no number mmmu_acc of mmmu_val"):
        left(tmp_path / "a", BENCHMARKS["mmmu"], {"mmmu_acc": "N/A"}, [], problems=900)


def test_the_average_of_independent_scores(tmp_path):
    scores = [
        left(tmp_path / str(index), BENCHMARKS["logicvista"], {"acc_score": right / 100}, [], problems=100)
        for index, right in enumerate((20, 50, 80))
    ]
    mean, low, high = average_of(scores)
    assert mean == pytest.approx(0.5)
    below = sum((score.value - score.interval[0]) ** 2 for score in scores) ** 0.5 / 3
    assert low == pytest.approx(0.5 - below)
    # Of three equal scores the interval is narrower by the root of three.
    same = [scores[1]] * 3
    assert average_of(same)[2] - 0.5 == pytest.approx((scores[1].interval[1] - 0.5) / 3**0.5)
    assert high - low < max(score.interval[1] - score.interval[0] for score in scores)


def test_the_papers_numbers_are_the_papers():
    assert (PAPER["2B"]["CEPO"], PAPER["2B"]["base"], PAPER["4B"]["CEPO"]) == (43.43, 39.73, 60.56)
    assert Sampling() == Sampling(1.0, 1.0, 40, 2.0, 32000)
    assert "| 4B | 58.36 | 57.43 | 56.23 | 55.75 | 58.51 | 60.56 |" in markdown(
        "m", [], [], {"backend": "vllm", "limit": None, "seed": 0, "tasks": {}, "sampling": vars(Sampling())}
    )


def test_a_short_longest_answer_is_not_lengthened_by_the_engine(tmp_path):
    settings = Settings("m", "vllm", Sampling(max_new_tokens=16), 0, 1, "python")
    words = command_of(Benchmark("mmmu", "mmmu_val", "d", "m"), settings, tmp_path)
    assert pairs(words[words.index("--model_args") + 1])["max_new_tokens"] == "16"
