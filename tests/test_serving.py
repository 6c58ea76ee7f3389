"""`cepo explain --open`: one page on this machine, until Ctrl-C."""

import http.client
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from rich.console import Console

from cepo import cli
from cepo.commands import serving
from cepo.commands.serving import PageServer, open_page

SMALL = ["--index=1", "--num_generations=2", "--max_completion_length=8"]


@pytest.fixture
def served():
    server = PageServer()
    server.page = "<p>déjà vu</p>".encode()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def answer(server, method="GET", path="/", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, path, headers={"Host": host or f"127.0.0.1:{server.port}"})
    response = connection.getresponse()
    return response.status, response.headers["Content-Type"], response.read()


def test_only_the_page_is_served(served):
    assert served.server_address[0] == "127.0.0.1"
    assert answer(served) == (200, "text/html; charset=utf-8", served.page)
    assert answer(served, host="localhost:8000")[0] == 200  # through a forwarded port
    for path in ("/explain.html", "/..", "/../../etc/passwd", "/?page=/etc/passwd", "/favicon.ico"):
        assert answer(served, path=path)[0] == 404, path
    assert answer(served, host="example.com")[0] == 404  # a site that resolves to this machine
    assert answer(served, "POST")[0] == 501


@pytest.mark.parametrize(
    ("environment", "opens"),
    [
        ({"DISPLAY": ":0"}, True),
        ({"DISPLAY": ":0", "SSH_CONNECTION": "a 1 b 2"}, True),  # X forwarding
        ({"BROWSER": "editor", "SSH_CONNECTION": "a 1 b 2"}, True),  # of a remote editor
        ({"SSH_CONNECTION": "a 1 b 2"}, False),
        ({}, False),
    ],
)
def test_a_hint_without_a_browser(environment, opens, monkeypatch):
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", "linux")
    asked = []
    monkeypatch.setattr(serving.webbrowser, "open", lambda address: asked.append(address) or True)
    # Ctrl-C at once.
    monkeypatch.setattr(serving.threading.Thread, "join", lambda thread: signal.raise_signal(signal.SIGINT))
    out = io.StringIO()
    server = PageServer()
    open_page(server, "<p>", Console(file=out, width=500))
    assert asked == ([server.address] if opens else [])
    assert f"served at {server.address} until Ctrl-C" in out.getvalue()
    assert (f"ssh -N -L {server.port}:127.0.0.1:{server.port} {socket.gethostname()}" in out.getvalue()) is not opens
    assert server.socket.fileno() == -1  # closed


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--open", "--terminal"], "--open: with --terminal no page is written"),
        (["--port", "8000"], "--port is for --open"),
        (["--open", "--port", "0"], "must be from 1 to 65535"),
    ],
)
def test_invalid_options(arguments, named, capsys):
    assert cli.main(["explain", *arguments]) == 2
    assert named in capsys.readouterr().err


def test_a_port_in_use_is_refused_before_loading(served, capsys):
    arguments = ["explain", "--open", "--port", str(served.port), "--model_name_or_path", "./nowhere"]
    assert cli.main(arguments) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert f"--port: port {served.port} of 127.0.0.1 is not available (Address already in use); choose another" in error


def test_the_real_command(tmp_path):
    """With a browser that records the address."""
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/asked\n')
    browser.chmod(0o755)
    (tmp_path / "secret.txt").write_text("mine")
    process = subprocess.Popen(
        [sys.executable, "-m", "cepo.cli", "explain", *SMALL, "--open"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "BROWSER": str(browser)},
    )
    try:
        line = next(line for line in process.stdout if line.startswith("served at"))
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
        with urllib.request.urlopen(address, timeout=60) as response:
            assert response.read() == (tmp_path / "explain.html").read_bytes()
        for path in ("secret.txt", "explain.html", "nothing"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(address + path, timeout=60)
        deadline = time.monotonic() + 60
        while not (tmp_path / "asked").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "Traceback" not in printed + errors
    assert "No browser here" not in printed
    assert (tmp_path / "asked").read_text() == f"{address}\n"
