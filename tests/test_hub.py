"""`--push_to_hub` with a Hub that becomes unreachable: the model is saved before it is uploaded."""

import json
import os
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.support.command_line import SMALL, command


@contextmanager
def fake_hub():
    """A Hub that creates the repository and is unreachable afterwards."""
    created = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = json.dumps({"url": f"{address}/me/{asked['name']}", "name": asked["name"]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
            created.set()

        def do_GET(self):
            self.send_error(404)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"

    def serve():
        while not created.is_set():
            server.handle_request()
        server.server_close()

    threading.Thread(target=serve, daemon=True).start()
    yield address


@pytest.mark.integration
def test_the_model_is_saved_if_the_upload_fails(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    flags = ["--max_steps=2", "--eval_problems=0", "--save_strategy=no", "--output_dir=out"]
    with fake_hub() as address:
        environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            command("train", *SMALL, *flags, "--push_to_hub", "--hub_model_id=me/figures"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=environment,
        )
    assert done.returncode == 1, done.stderr
    for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md", "summary.json"):
        assert (tmp_path / "out" / name).is_file()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["steps"] == 2
