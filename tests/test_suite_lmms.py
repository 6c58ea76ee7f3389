"""lmms-eval itself, through `cepo suite`, on small problems in the forms of all five benchmarks."""

import json
import sys
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from cepo import cli, load_figures, policy_path
from tests.support import lmms_tasks

pytestmark = [
    pytest.mark.lmms,
    pytest.mark.skipif(find_spec("lmms_eval") is None, reason="needs lmms-eval: make test-eval"),
]

# Greedy, by the way of sampling.
SAMPLING = ["--presence_penalty", "0", "--top_k", "1", "--max_new_tokens", "160"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small models run faster with one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return lmms_tasks.make_tasks(tmp_path_factory.mktemp("problems"))


def evaluate(model, tasks, output, *more, names=lmms_tasks.STOCK):
    """The command's exit status and suite.json."""
    some = ",".join(f"{name}={lmms_tasks.TASKS[name]}" for name in names)
    arguments = ["--model_name_or_path", str(model), "--tasks", some, "--include_path", tasks]
    status = cli.main(["suite", *arguments, "--output_dir", str(output), *more])
    return status, json.loads((output / "suite.json").read_text())


def scores(found):
    return {one["name"]: round(one["value"] * one["problems"]) for one in found["benchmarks"]}


def test_all_five_run_and_are_scored(tasks, tmp_path, capsys):
    policy = lmms_tasks.make_policy(tmp_path / "policy")
    # On doubled images its logits are those of the shipped policy.
    row, twice = lmms_tasks.solvable()[0], lmms_tasks.problems(1)[0]
    logits = []
    for model, image in ((policy, twice["image"]), (policy_path(), row["image"])):
        processor = AutoProcessor.from_pretrained(model)
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": twice["question"]}]}
        text = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        inputs = processor(text=[text], images=[[image]], do_resize=False, return_tensors="pt")
        with torch.no_grad():
            logits.append(AutoModelForImageTextToText.from_pretrained(model)(**inputs).logits)
    assert (logits[0] - logits[1]).abs().max() < 1e-3

    output = tmp_path / "out"
    status, found = evaluate(policy, tasks, output, "--backend", "transformers", *SAMPLING)
    assert status == 0, capsys.readouterr().err
    correct = scores(found)
    # Answers in another form, (162/2, 73, 79), count as correct.
    for name, metric in (("logicvista", "acc_score"), ("mathvision", "mathvision_standard_eval")):
        (samples,) = (output / name).glob("*/*_samples_*.jsonl")
        first = json.loads(samples.read_text().split("\n")[0])[metric]
        assert (first if name == "logicvista" else first["scores"][0]) == 1, (name, first)
    called = {one["name"]: one["problems"] for one in found["benchmarks"]}
    assert called == {name: number for name, (_, number) in lmms_tasks.ROWS.items()}
    # MMMU's prompts mention options that the problems do not have.
    for name in ("dynamath", "logicvista", "mathvision", "wemath"):
        assert correct[name] >= called[name] / 2, (name, correct)
    assert correct["mmmu"] >= 1
    assert found["average"]["low"] < found["average"]["value"] < found["average"]["high"]
    table = (output / "suite.md").read_text()
    assert "| average of 5 | 27 |" in table
    # A second call runs nothing and reports the same.
    capsys.readouterr()
    again = evaluate(policy, tasks, output, "--backend", "transformers", *SAMPLING)
    assert again == (0, found)
    assert capsys.readouterr().out.count("finished before with these settings") == 5


def test_a_benchmark_that_fails_is_an_error(tasks, tmp_path, capsys):
    """lmms-eval exits with status 0."""
    more = ["--backend", "transformers", *SAMPLING, "--model_args", "nonsense=1"]
    status, found = evaluate(policy_path(), tasks, tmp_path / "out", *more, names=["logicvista"])
    assert (status, found["benchmarks"], found["failed"]) == (1, [], ["logicvista"])
    error = capsys.readouterr().err
    assert "lmms-eval wrote no results (exit status 0)" in error
    assert "Unexpected kwargs: {'nonsense': 1}" in error


# The part of vLLM's interface that lmms-eval uses; it records its arguments.
VLLM = """
import json, os
from types import SimpleNamespace

class SamplingParams:
    def __init__(self, **given):
        self.given = given

class LLM:
    def __init__(self, **given):
        note({"engine": given})

    def chat(self, messages, sampling_params, **given):
        for message, params in zip(messages, sampling_params, strict=True):
            note({"sampling": params.given, "text": message[-1]["content"][-1]["text"]})
        return [SimpleNamespace(outputs=[SimpleNamespace(text="So it is \\\\boxed{(1, 2)}")]) for _ in messages]

    def get_metrics(self):
        return []

def note(call):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(json.dumps(call, default=str) + "\\n")
"""


def test_vllm_gets_the_papers_settings(tasks, tmp_path, monkeypatch, capsys):
    package = tmp_path / "site" / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(VLLM)
    monkeypatch.setenv("NOTES", str(tmp_path / "notes.jsonl"))
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path / "site"), *filter(None, sys.path)]))
    status, found = evaluate(policy_path(), tasks, tmp_path / "out", "--seed", "5", names=["logicvista"])
    assert status == 0, capsys.readouterr().err
    engine, *called = [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]
    assert engine["engine"]["model"] == policy_path()
    assert len(called) == 8
    for one in called:
        assert one["sampling"] == {
            **{"temperature": 1.0, "top_p": 1.0, "top_k": 40, "presence_penalty": 2.0},
            **{"max_tokens": 32000, "seed": 5},
        }
    questions = [row["prompt"][0]["content"] for row in load_figures("test", 100)]
    assert all(one["text"] in questions for one in called)
    assert scores(found) == {"logicvista": 0}
