"""An unreachable Hub: one line before training; or after it, with the model saved, and an exit status."""

import json
import os
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import huggingface_hub
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoProcessor

from cepo import cli
from tests.support.command_line import SMALL, command

CLOSED = "http://127.0.0.1:9"  # a closed port
TRAIN = ["train", *SMALL, "--max_steps=2", "--eval_problems=0", "--output_dir=out"]
PUSH = ["--push_to_hub", "--hub_model_id=me/figures"]


def ended(folder, *arguments, hub=CLOSED, offline=False):
    """The real command, with another address of the Hub."""
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "home"), **({"HF_HUB_OFFLINE": "1"} if offline else {})}
    done = subprocess.run(command(*arguments), cwd=folder, capture_output=True, text=True, env=environment)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@contextmanager
def fake_hub():
    """A Hub that creates the repository, for the command and for transformers, and is unreachable afterwards."""
    made = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            made.append(self.path)
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            url = f"{address}/{asked.get('organization') or 'me'}/{asked['name']}"
            answer = json.dumps({"url": url, "name": asked["name"]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def do_GET(self):
            self.send_error(404)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"

    def serve():
        while len(made) < 2:
            server.handle_request()
        server.server_close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield address, made


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize(
    ("given", "option"),
    [(PUSH, "push_to_hub"), (["--log_completions", "--log_completions_hub_repo=me/logs"], "log_completions_hub_repo")],
)
def test_an_unreachable_hub_is_refused_before_training(tmp_path, given, option, offline):
    done = ended(tmp_path, *TRAIN, *given, offline=offline)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"cepo: error: {option}: ")
    assert ("offline mode is enabled" if offline else "Connection refused") in line
    assert "leave it out" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("saves", [False, True])
def test_the_model_is_saved_if_the_upload_fails(tmp_path, saves):
    """Uploads of checkpoints in the background, and of the model in the end."""
    strategy = ["--save_steps=1"] if saves else ["--save_strategy=no"]
    with fake_hub() as (address, made):
        done = ended(tmp_path, *TRAIN, *PUSH, *strategy, hub=address)
    assert made == ["/api/repos/create"] * 2
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "not pushed" in line]
    assert line.startswith("the model is saved in out, and was not pushed to the Hub (")
    assert line.endswith("; push it later: hf upload me/figures out . --exclude 'checkpoint-*'")
    for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md", "summary.json"):
        assert (tmp_path / "out" / name).is_file()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["steps"] == 2
    assert ("a checkpoint was not pushed to the Hub" in done.stderr) == saves
    assert (tmp_path / "out" / "checkpoint-2" / "trainer_state.json").is_file() == saves


def test_a_merged_model_is_kept_if_the_upload_fails(tmp_path, text_model_path, monkeypatch, capsys):
    """The repository is created before merging."""
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(text_model_path), LoraConfig(target_modules="all-linear")
    )
    model.save_pretrained(tmp_path / "adapters")
    AutoProcessor.from_pretrained(text_model_path).save_pretrained(tmp_path / "adapters")
    monkeypatch.chdir(tmp_path)
    arguments = ["merge", "--model_name_or_path=adapters", "--output_dir=merged", "--push_to_hub=me/merged"]
    done = ended(tmp_path, *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("cepo: error: push_to_hub: the repository cannot be made on the Hub ([Errno 111]")
    assert not (tmp_path / "merged").exists()

    class Api:
        def create_repo(self, name, **options):
            return f"https://hub/{name}"

        def upload_folder(self, **options):
            raise httpx.ConnectError("[Errno 111] Connection refused")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    capsys.readouterr()
    assert cli.main(arguments) == 1
    assert capsys.readouterr().out.splitlines()[-1] == (
        "merged was not uploaded to the Hub ([Errno 111] Connection refused); upload it later: "
        "hf upload me/merged merged . --exclude 'checkpoint-*'"
    )
    assert (tmp_path / "merged" / "model.safetensors").is_file()
