"""A real browser shows a page that tries to have a socket server run code."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, BaseServer, ThreadingTCPServer
from typing import TypeVar

import pytest
from socketservers import Servers, connect, read_to_end
from tools import BOUND_S, MakeGateway, missing, wait_until
from workers import ask

BROWSERS = "chromium", "chromium-browser", "google-chrome"
Server = TypeVar("Server", bound=BaseServer)
# It tells what it has tried when it has tried everything, whatever came of it.
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
  }
  await fetch("/tried", {method: "POST", body: Object.keys(ways).join()});
})();
</script></body>"""


# Its own site has become the server, as after DNS rebinding: it may use methods of its own then.
# A quote is a legal one, so that the first line of the request can be an expression.
REBOUND_PAGE = """<!doctype html><title>page</title><body><script>
const paths = ["/'if(CODE)else", "/'if(CODE)else?'", "/';CODE;'"];
(async () => {
  for (const path of paths) {
    for (const method of ["'", "''", "GET'"]) {
      try { await fetch(path, {method: method, body: "CODE"}); } catch (error) {}
    }
  }
  await fetch("http://SITE/tried", {method: "POST", mode: "no-cors", body: "methods"});
})();
</script></body>"""
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n"


@pytest.fixture
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        missing("chromium")
    return found


class Site(HTTPServer):
    """Serves ``text`` at another port: another site, as browsers see it."""

    def __init__(self) -> None:
        self.text = ""
        self.tried = ""
        self.is_done = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:
                handler.answer(self.text)

            def do_POST(handler) -> None:
                length = int(handler.headers["Content-Length"])
                self.tried = handler.rfile.read(length).decode()
                handler.answer("")
                self.is_done.set()

            def answer(handler, text: str) -> None:
                handler.send_response(200)
                handler.send_header("Content-Type", "text/html")
                handler.end_headers()
                handler.wfile.write(text.encode())

            def log_message(self, *args: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server_port}"


def serving(server: Server) -> Iterator[Server]:
    """Give a server that serves in a thread, until this is taken up again."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join(BOUND_S)
    server.server_close()


@pytest.fixture
def site(nothing_is_left: None) -> Iterator[Site]:
    yield from serving(Site())


class Way(ThreadingTCPServer):
    """Leads to a server, and keeps what was said to it."""

    daemon_threads = False

    def __init__(self) -> None:
        self.server = ""
        self.page = b""  # what it answers itself to whoever asks for "/"
        self.said: list[bytes] = []

        class Handler(BaseRequestHandler):
            def handle(handler) -> None:
                handler.request.settimeout(BOUND_S)
                with connect(self.server) as far, suppress(OSError):
                    data = handler.request.recv(65536)
                    if self.page and data.startswith(b"GET / "):
                        handler.request.sendall(OK + self.page)
                        return
                    if data:
                        self.said.append(data)
                    far.sendall(data)
                    handler.request.sendall(read_to_end(far))

        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def way(nothing_is_left: None) -> Iterator[Way]:
    yield from serving(Way())


def show(browser: str, url: str, site: Site, way: Way, requests: int, folder: Path) -> None:
    """Show a page until it has tried everything, and so many requests were on their way."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += [f"--user-data-dir={folder}/profile", url]
    command += ["--host-resolver-rules=MAP rebound.test 127.0.0.1"]
    with (folder / "shown").open("wb") as shown:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=shown, stderr=shown)
        try:
            is_done = site.is_done.wait(3 * BOUND_S)  # a browser takes its time
            # A beacon is sent when the browser sees fit.
            wait_until(lambda: len(way.said) >= requests or process.poll() is not None)
        finally:
            process.terminate()
            process.wait(BOUND_S)
    assert is_done, (folder / "shown").read_text(errors="replace")


@pytest.mark.parametrize("options", [[], ["--no-authentication"]], ids=["key", "no key"])
def test_whatever_a_page_tries_runs_nothing(
    browser: str,
    site: Site,
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
    site.text = PAGE.replace("ADDRESS", way.address).replace("CODE", code)
    show(browser, f"http://{site.address}/", site, way, 5, tmp_path)
    assert site.tried == "image,get,post,beacon,socket"
    assert {b"GET", b"POST"} <= {said.split(b" ")[0] for said in way.said}
    assert len(way.said) >= 5, "all of them have reached the server"
    assert not ran.exists()
    assert server.processes() == []
    gateway = makegateway(f"socket={server.address}" + ("//authentication=none" if options else ""))
    assert ask(gateway, "channel.send(1)") == 1


@pytest.mark.parametrize("options", [[], ["--no-authentication"]], ids=["key", "no key"])
def test_a_page_whose_own_site_becomes_the_server_runs_nothing(
    browser: str, site: Site, way: Way, servers: Servers, tmp_path: Path, options: list[str]
) -> None:
    server = servers.start(":0", *options)
    ran = tmp_path / "ran"
    way.server = server.address
    page = REBOUND_PAGE.replace("SITE", site.address).replace("CODE", f"open('{ran}','w')")
    way.page = page.encode()
    port = way.address.rpartition(":")[2]
    show(browser, f"http://rebound.test:{port}/", site, way, 9, tmp_path)
    assert site.tried == "methods"
    lines = [said.split(b"\r\n")[0] for said in way.said]
    assert f"' /'if(open('{ran}','w'))else HTTP/1.1".encode() in lines, "it is an expression"
    assert not ran.exists()
    assert server.processes() == []
