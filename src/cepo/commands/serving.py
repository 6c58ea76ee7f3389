"""One page over HTTP, on this machine alone, for as long as a person reads it."""

import os
import socket
import sys
import threading
import webbrowser
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

from rich.console import Console

_HOST = "127.0.0.1"


class PageServer(ThreadingTCPServer):
    """Serves one page at ``/``, and nothing else: no file, no folder.

    It takes its port when it is made, so that a port that is not to be had is refused before any work is done.

    Args:
        port: Its port; None: a free one.

    Raises:
        ValueError: If the port cannot be had.
    """

    allow_reuse_address = True  # a port that a server has just left
    daemon_threads = True

    def __init__(self, port: int | None = None):
        self.page = b""
        try:
            super().__init__((_HOST, port or 0), _Handler)
        except OSError as error:
            wanted = "a free port" if port is None else f"port {port}"
            raise ValueError(
                f"--port: {wanted} of {_HOST} cannot be had ({error.strerror}); name another, or leave it out for a "
                "free one"
            ) from error

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def address(self) -> str:
        return f"http://{_HOST}:{self.port}/"

    def handle_error(self, request, client_address):
        """A browser that hangs up is nobody's mistake."""


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = 60  # seconds for a request to arrive

    def do_GET(self):
        page = self._head()
        if self.command == "GET":
            self.wfile.write(page)

    do_HEAD = do_GET  # noqa: N815

    def _head(self) -> bytes:
        # A page from elsewhere may ask under a name of its own that it has lead here.
        asked = self.headers.get("Host", _HOST).partition(":")[0]
        found = self.path == "/" and asked in (_HOST, "localhost")
        page = self.server.page if found else f"There is one page here: {self.server.address}\n".encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", f"text/{'html' if found else 'plain'}; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        return page

    def log_message(self, format, *args):
        """Requests are nothing to tell."""


def open_page(server: PageServer, page: str, console: Console) -> None:
    """Serve a page, open it in the browser where there is one, and return after Ctrl-C.

    Args:
        server: Its server; closed in the end.
        page: HTML.
        console: Where the address goes.
    """
    server.page = page.encode()
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            console.print(f"served at {server.address} until Ctrl-C", highlight=False)
            if not (_has_browser() and webbrowser.open(server.address)):
                console.print(
                    "No browser here. From where there is one: "
                    f"ssh -N -L {server.port}:{_HOST}:{server.port} {socket.gethostname()}, then open the address.",
                    highlight=False,
                    markup=False,
                )
            thread.join()
        except KeyboardInterrupt:
            console.print("\nno longer served")
        finally:
            server.shutdown()


def _has_browser() -> bool:
    """Whether a browser would open where the person sits, and not within the terminal or on nobody's screen."""
    if os.environ.get("BROWSER"):  # editors set it to what reaches the person's own machine
        return True
    if sys.platform in ("darwin", "win32"):
        return "SSH_CONNECTION" not in os.environ
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
