"""What TensorBoard, Trackio and W&B hold after a real run."""

import functools
import importlib
import json
import subprocess
import sys

import pytest
import torch

from cepo import cli
from cepo.trainer.metrics import verdict_shares
from tests.support.command_line import SMALL, command
from tests.support.loggers import read_events
from tests.support.training import half_right, train, wrong_answers

PAGES = {"credit_page_steps": 2, "max_steps": 3}


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Loggers write below the test's folder, without network."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.fixture
def trackio(tmp_path, monkeypatch):
    """Trackio with its database in the test's folder."""
    module = pytest.importorskip("trackio")
    importlib.import_module("trackio.sqlite_storage")

    for name, loaded in list(sys.modules.items()):
        if name.partition(".")[0] == "trackio":
            for attribute, folder in (("TRACKIO_DIR", "."), ("MEDIA_DIR", "media")):
                if hasattr(loaded, attribute):
                    monkeypatch.setattr(loaded, attribute, tmp_path / "trackio" / folder)
    return module


def pages_of(tmp_path):
    return {path.name: path.read_text() for path in (tmp_path / "out" / "credit").iterdir()}


# TensorBoard ----------------------------------------------------------------------------------------------------------


def test_tensorboard_holds_metrics_and_credit(tmp_path, text_figures, text_model_path, monkeypatch):
    wrong_answers(monkeypatch)
    train(tmp_path, text_figures, text_model_path, half_right, report_to="tensorboard", **PAGES)
    scalars, texts = read_events(tmp_path / "out")
    assert scalars["train/cepo/correct"] == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert [step for step, _ in scalars["train/reward"]] == [1, 2, 3]
    assert [step for step, _ in texts["credit"]] == [0, 2]
    for step, text in texts["credit"]:
        assert f"step {step}" in text
        assert f"credit/step-{step:05d}.html`" in text
        assert text.count("| correct |") == 4  # of each of two groups
        assert text.count("| incorrect |") == 4
    assert pages_of(tmp_path).keys() == {"step-00000.html", "step-00002.html"}


# Trackio --------------------------------------------------------------------------------------------------------------


def test_trackio_holds_metrics_the_page_and_trls_table(tmp_path, text_figures, text_model_path, monkeypatch, trackio):
    wrong_answers(monkeypatch)
    options = {**PAGES, "log_completions": True, "num_completions_to_print": 0}
    options |= {"report_to": "trackio", "project": "of-a-test", "run_name": "one"}
    train(tmp_path, text_figures, text_model_path, half_right, **options)
    assert list((tmp_path / "trackio").glob("of-a-test*")), "the database is the test's own"
    logs = trackio.sqlite_storage.SQLiteStorage.get_logs("of-a-test", "one")
    assert [log["train/cepo/correct"] for log in logs if "train/cepo/correct" in log] == [0.5] * 3
    drawn = {log["train/global_step"]: log["credit"] for log in logs if "credit" in log}
    held = {
        f"step-{step:05d}.html": (tmp_path / "trackio" / "media" / page["file_path"]).read_text()
        for step, page in drawn.items()
    }
    assert held == pages_of(tmp_path)
    tables = [log["completions"]["_value"] for log in logs if "completions" in log]
    assert [{row["step"] for row in table} for table in tables] == [{1}, {2}, {3}, {3}]


# W&B ------------------------------------------------------------------------------------------------------------------


def read_wandb(folder):
    """The logs in the file of an offline run, as dictionaries."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    store, logs = DataStore(), []
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(data)
        log = {}
        for item in record.history.item:
            *outer, last = item.nested_key or [item.key]
            inner = functools.reduce(lambda held, key: held.setdefault(key, {}), outer, log)
            inner[last] = json.loads(item.value_json)
        logs += [log] if log else []
    return logs, path.parent / "files"


def test_wandb_holds_metrics_the_page_and_trls_table(tmp_path):
    """Offline, in a separate process, since W&B keeps state."""
    pytest.importorskip("wandb")
    options = ["--report_to=wandb", "--credit_page_steps=1", "--log_completions"]
    options += ["--eval_problems=0", "--num_completions_to_print=0", "--output_dir=out"]
    subprocess.run(command("train", *SMALL, *options), cwd=tmp_path, check=True, capture_output=True, text=True)
    logs, files = read_wandb(tmp_path)
    assert [log["train/global_step"] for log in logs if "train/cepo/correct" in log] == [1, 2]
    drawn = {log["train/global_step"]: log["credit"] for log in logs if "credit" in log}
    assert {page["_type"] for page in drawn.values()} == {"html-file"}
    assert {f"step-{step:05d}.html": (files / page["path"]).read_text() for step, page in drawn.items()} == pages_of(
        tmp_path
    )
    tables = [log["completions"] for log in logs if "completions" in log]
    assert {table["_type"] for table in tables} == {"table-file"}


# The command line, and the share of correct rollouts ------------------------------------------------------------------


def test_flags_and_yaml_name_loggers(tmp_path):
    """`cepo train`, as a user starts it."""
    config = tmp_path / "run.yaml"
    config.write_text("report_to: [tensorboard]\ncredit_page_steps: 1\n")
    arguments = ["--config", str(config), *SMALL, "--eval_problems=0", "--output_dir", str(tmp_path / "out")]
    assert cli.main(["train", *arguments]) == 0
    scalars, texts = read_events(tmp_path / "out")
    assert len(scalars["train/reward"]) == 2
    assert [step for step, _ in texts["credit"]] == [0, 1]
    assert (
        cli.main(["train", *SMALL, "--eval_problems=0", "--report_to=tensorboard", "--output_dir", str(tmp_path / "b")])
        == 0
    )
    scalars, texts = read_events(tmp_path / "b")
    assert len(scalars["train/reward"]) == 2
    assert "credit" not in texts


def test_verdict_shares_by_hand():
    nan = float("nan")
    assert verdict_shares(torch.tensor([1.0, 0.5, 0.2, nan]), 0.5) == pytest.approx((2 / 3, 1 / 4))
    assert verdict_shares(torch.tensor([0.0, -1.0]), 0.5) == (0, 0)
    correct, missing = verdict_shares(torch.tensor([nan, nan]), 0.5)
    assert correct != correct
    assert missing == 1


def test_correctness_compares_with_the_threshold(tmp_path, text_figures, text_model_path):
    """Rewards of 2 and 0.6 are correct, 0.4 is incorrect, None is no verdict."""

    def judge(completions, **kwargs):
        return [2.0, 0.6, 0.4, None] * (len(completions) // 4)

    trainer = train(tmp_path, text_figures, text_model_path, judge, max_steps=1)
    assert [entry["cepo/correct"] for entry in trainer.state.log_history if "cepo/correct" in entry] == pytest.approx(
        [2 / 3]
    )
