"""A package index on loopback, whose requests the coordinator answers.

Installers here resolve requirements themselves, and what they ask for comes over a channel.  The
path is random, so that other users of this machine can't find it.  Pip tells it to its children by
an argument, so other users are refused as well, where the system tells whose a connection is.
Files with a known digest are kept, and not sent twice.  This file is shipped.  Start at ``Relay``.

A request is (number, kind, what): ``simple`` and a project, ``links`` and "", ``file`` and an id.
An answer is (number, status, type, digest), then (number, bytes) in pieces, and (number, None).
"""

from __future__ import annotations

import binascii
import hashlib
import io
import os
import re
import threading

try:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from queue import Empty, Queue
    from socketserver import ThreadingMixIn
except ImportError:  # Python 2
    from BaseHTTPServer import BaseHTTPRequestHandler, HTTPServer  # type: ignore
    from Queue import Empty, Queue  # type: ignore
    from SocketServer import ThreadingMixIn  # type: ignore

from .places import text_of
from .quick import native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ...gateway_base import Channel

    Inbox = Queue[tuple[Any, ...] | None]  # of one request: what follows its number; None: the end
    Answer = tuple[int, str, str, Iterator[bytes]]  # status, type, digest, pieces

ANSWER_S = 300.0
PIECE_BYTES = 1 << 18
SHA256 = re.compile(r"[0-9a-f]{64}$")
PATH = re.compile(r"/(?:(simple)/([A-Za-z0-9._-]{1,200})/?|(links)/|(file)/([0-9]{1,9})/[^/]+)$")


class Relay(object):
    """Serves at ``url`` while it is open.

    channel: to the coordinator.  kept: the folder of files that were received.
    """

    def __init__(self, channel: Channel, kept: str) -> None:
        self._channel = channel
        self._kept = kept
        self._lock = threading.Lock()
        self._waiting: dict[int, Inbox] = {}
        self._last = 0
        self._secret = binascii.hexlify(os.urandom(16)).decode("ascii")
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.relay = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.daemon = True
        channel.setcallback(self._on_answer, endmarker=None)
        self._thread.start()
        self.url = "http://127.0.0.1:%d/%s/" % (self._server.server_address[1], self._secret)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._channel.close()

    def _on_answer(self, item: tuple[Any, ...] | None) -> None:
        with self._lock:
            everyone = list(self._waiting.values())
            inboxes = everyone if item is None else [self._waiting.get(item[0])]
        for inbox in inboxes:
            if inbox is not None:
                inbox.put(item if item is None else item[1:])

    def ask(self, kind: str, what: str) -> Answer:
        """Return (status, type, digest, pieces); raises EOFError if no answer comes."""
        inbox: Inbox = Queue()
        with self._lock:
            self._last += 1
            number = self._last
            self._waiting[number] = inbox
        try:
            self._channel.send((number, text_of(kind), text_of(what)))
            head = _taken(inbox)
        except BaseException:
            self._forget(number)
            raise
        return tuple(head) + (self._pieces(number, inbox),)

    def _forget(self, number: int) -> None:
        with self._lock:
            self._waiting.pop(number, None)

    def _pieces(self, number: int, inbox: Inbox) -> Iterator[bytes]:
        try:
            while True:
                (piece,) = _taken(inbox)
                if piece is None:
                    return
                yield piece
        finally:
            self._forget(number)

    # called by handlers

    def answer(self, handler: BaseHTTPRequestHandler, path: str) -> None:
        """Answer a request of an installer."""
        start = "/" + self._secret
        match = PATH.match(path[len(start) :]) if path.startswith(start + "/") else None
        if match is None:
            handler.send_error(404)
            return
        kind = match.group(1) or match.group(3) or match.group(4)
        what = match.group(2) or match.group(5) or ""
        if kind == "file" and path.endswith(".metadata"):
            what += "m"
        status, type, digest, pieces = self.ask(kind, what)
        if status != 200:
            handler.send_error(status if status in (404, 502) else 502)
            for _ in pieces:
                pass
            return
        digest = native(digest or u"")
        if kind == "file" and SHA256.match(digest):
            self._send_kept(handler, digest, pieces)
            return
        data = b"".join(pieces)
        handler.send_response(200)
        handler.send_header("Content-Type", native(type))
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data)

    def _send_kept(
        self, handler: BaseHTTPRequestHandler, digest: str, pieces: Iterator[bytes]
    ) -> None:  # fmt: skip
        """Send a file from those kept, or keep it from now on.

        The coordinator is asked first in any case: its answer has the digest.  It sends the content
        only when told to go on.
        """
        path = os.path.join(self._kept, digest)
        if not os.path.exists(path):
            status, _, _, pieces = self.ask("content", digest)
            if status != 200 or not _keep(path, digest, pieces):
                handler.send_error(502)
                return
        os.utime(path, None)  # this notes its last use
        size = os.stat(path).st_size
        handler.send_response(200)
        handler.send_header("Content-Type", "application/octet-stream")
        handler.send_header("Content-Length", str(size))
        handler.end_headers()
        with open(path, "rb") as file:
            piece = handler.command != "HEAD" and file.read(PIECE_BYTES)
            while piece:
                handler.wfile.write(piece)
                piece = file.read(PIECE_BYTES)


def _taken(inbox: Inbox) -> tuple[Any, ...]:
    try:
        item = inbox.get(True, ANSWER_S)
    except Empty:
        item = None
    if item is None:
        raise EOFError("the coordinator did not answer")
    return item


def _keep(path: str, digest: str, pieces: Iterator[bytes]) -> bool:
    """Write a file that arrives in pieces; False if it does not match its digest."""
    temporary = "%s.%s" % (path, binascii.hexlify(os.urandom(4)).decode("ascii"))
    seen = hashlib.sha256()
    try:
        with open(temporary, "wb") as file:
            for piece in pieces:
                seen.update(piece)
                file.write(piece)
        if seen.hexdigest() != digest:
            return False
        os.rename(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return True


def is_ours(port: int, server_port: int, table: str = "/proc/net/tcp") -> bool:
    """Whether the connection from one port to another is this user's or root's.

    table: where Linux tells whose a connection is; without it, nothing is known, and it is ours.
    """
    try:
        lines = [line for name in (table, table + "6") for line in _lines_of(name)]
    except EnvironmentError:
        return True
    ends = ":%04X" % port, ":%04X" % server_port
    found = [w for w in lines if w[1].endswith(ends[0]) and w[2].endswith(ends[1])]
    return {int(words[7]) for words in found} <= {0, os.geteuid()}


def _lines_of(path: str) -> list[list[str]]:
    if path.endswith("6") and not os.path.exists(path):
        return []
    with io.open(path, encoding="ascii") as file:
        return [line.split() for line in file][1:]


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False
    relay: Relay

    def verify_request(self, request: object, client_address: tuple[str, int]) -> bool:
        """Whether a connection is this user's, as far as that is known."""
        return is_ours(client_address[1], self.server_address[1])

    def handle_error(self, request: object, client_address: tuple[str, int]) -> None:
        """Say nothing: an installer may have been killed."""


class _Handler(BaseHTTPRequestHandler):
    timeout = 60
    server: _Server

    def do_GET(self) -> None:
        self.server.relay.answer(self, self.path.partition("?")[0].partition("#")[0])

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Log nothing: the coordinator reports what is done."""
