"""`cepo explain --open`: one page over HTTP on this machine, until Ctrl-C."""

import os
import socket
import sys
import threading
import webbrowser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rich.console import Console

_HOST = "127.0.0.1"


class PageServer(ThreadingHTTPServer):
    """Serves one page at ``/``, and no files.

    Args:
        port: TCP port; None: a free one.

    Raises:
        ValueError: If the port is not available.
    """

    daemon_threads = True

    def __init__(self, port: int | None = None):
        self.page = b""
        try:
            super().__init__((_HOST, port or 0), _Handler)
        except OSError as error:
            raise ValueError(
                f"--port: port {port} of {_HOST} is not available ({error.strerror}); choose another, or leave it out"
            ) from error

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def address(self) -> str:
        return f"http://{_HOST}:{self.port}/"


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self):
        # Other Host headers come from pages of other sites whose name resolves to this machine (DNS rebinding).
        host = self.headers.get("Host", _HOST).partition(":")[0]
        if self.path != "/" or host not in (_HOST, "localhost"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(self.server.page)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(self.server.page)

    def log_message(self, format, *args):
        """Print no requests."""


def open_page(server: PageServer, page: str, console: Console) -> None:
    """Serve a page until Ctrl-C, and open it in the browser.

    Args:
        server: Of the page; closed at the end.
        page: HTML.
        console: Where the address is printed.
    """
    server.page = page.encode()
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        console.print(f"served at {server.address} until Ctrl-C")
        if not (_has_browser() and webbrowser.open(server.address)):
            forward = f"ssh -N -L {server.port}:{_HOST}:{server.port} {socket.gethostname()}"
            console.print(f"No browser here. On a machine with one, run {forward}, then open the address.")
        try:
            thread.join()
        except KeyboardInterrupt:
            console.print("\nno longer served")
        finally:
            server.shutdown()


def _has_browser() -> bool:
    """Whether a browser would open on the user's screen, and not in the terminal."""
    if os.environ.get("BROWSER"):  # set by remote editors, too
        return True
    if sys.platform in ("darwin", "win32"):
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
