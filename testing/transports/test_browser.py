"""A real browser shows a page that tries to have a socket server run code."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest
from socketservers import Servers, connect, read_to_end
from tools import BOUND_S, MakeGateway, missing
from workers import ask

BROWSERS = "chromium", "chromium-browser", "google-chrome"
# It says "done" when each way has been tried, whatever came of it.
PAGE = """<!doctype html><title>page</title><body><script>
const at = "ADDRESS", code = "CODE";
const line = "'" + code + "'\\n";
const path = "/(1)if(" + encodeURIComponent(code) + ")else";
const ways = {
  image: () => new Promise(end => {
    const image = new Image();
    image.onload = image.onerror = end;
    image.src = "http://" + at + path;
  }),
  get: () => fetch("http://" + at + path, {mode: "no-cors"}),
  post: () => fetch("http://" + at + "/", {method: "POST", mode: "no-cors", body: line}),
  beacon: () => Promise.resolve(navigator.sendBeacon("http://" + at + "/", line)),
  socket: () => new Promise(end => {
    const socket = new WebSocket("ws://" + at + path);
    socket.onopen = () => socket.send(line);
    socket.onclose = socket.onerror = end;
  }),
};
(async () => {
  for (const name in ways) {
    try { await ways[name](); } catch (error) {}
    document.body.append(" tried:" + name);
  }
})();
</script></body>"""


@pytest.fixture
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        missing("chromium")
    return found


@pytest.fixture
def page(nothing_is_left: None) -> Iterator[HTTPServer]:
    """Serves ``text`` at another port: another site, as browsers see it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(server.text.encode())  # type: ignore[attr-defined]

        def log_message(self, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join(BOUND_S)
    server.server_close()


class Way(ThreadingTCPServer):
    """Leads to a server, and keeps what was said to it."""

    daemon_threads = False

    def __init__(self) -> None:
        self.server = ""
        self.said: list[bytes] = []

        class Handler(BaseRequestHandler):
            def handle(handler) -> None:
                handler.request.settimeout(BOUND_S)
                with connect(self.server) as far, suppress(OSError):
                    data = handler.request.recv(65536)
                    if data:
                        self.said.append(data)
                    far.sendall(data)
                    handler.request.sendall(read_to_end(far))

        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def way(nothing_is_left: None) -> Iterator[Way]:
    way = Way()
    thread = threading.Thread(target=way.serve_forever)
    thread.start()
    yield way
    way.shutdown()
    thread.join(BOUND_S)
    way.server_close()


@pytest.mark.parametrize("options", [[], ["--no-authentication"]], ids=["key", "no key"])
def test_whatever_a_page_tries_runs_nothing(
    browser: str,
    page: HTTPServer,
    way: Way,
    servers: Servers,
    makegateway: MakeGateway,
    tmp_path: Path,
    options: list[str],
) -> None:
    server = servers.start(":0", *options)
    ran = tmp_path / "ran"
    code = f"open(`{ran}`,`w`)".replace("`", "\\x22")
    way.server = server.address
    page.text = PAGE.replace("ADDRESS", way.address).replace("CODE", code)  # type: ignore[attr-defined]
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += [f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=10000", "--dump-dom"]
    shown = subprocess.run(
        [*command, f"http://127.0.0.1:{page.server_port}/"],
        capture_output=True,
        text=True,
        timeout=90,
    )
    names = re.findall(r" tried:(\w+)", shown.stdout)
    assert names == ["image", "get", "post", "beacon", "socket"], shown.stderr
    assert {b"GET", b"POST"} <= {said.split(b" ")[0] for said in way.said}
    assert len(way.said) >= 5, "all of them have reached the server"
    assert not ran.exists()
    assert server.processes() == []
    gateway = makegateway(f"socket={server.address}" + ("//authentication=none" if options else ""))
    assert ask(gateway, "channel.send(1)") == 1
