"""Answers, from here, the requests that installers on the far side make to an index.

What arrives on the channel is not trusted: each request must match a pattern before it is used.
Start at ``Answers``.
"""

from __future__ import annotations

import re
import threading
import urllib.error
from collections import deque
from contextlib import suppress
from queue import SimpleQueue

from .._clock import monotonic
from ..gateway_base import Channel, new_lock
from .sources import Sources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

THREADS = 4
END_S = 0.5  # how long a request in progress may take to end; an index may not answer at all
REQUESTS_MAX = 100_000  # of one installation
WAITING_MAX = 1000
HTML = "text/html"
BYTES = "application/octet-stream"
PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
FILE = re.compile(r"([0-9]{1,9})(m?)")
DIGEST = re.compile(r"[0-9a-f]{64}")
PROBLEMS_SHOWN = 5


class Answers:
    """Serves one channel until it is closed.

    ``_on_request`` runs in the receiver thread, the rest in threads of its own.  problems: the
    last that could not be fetched, for the error that follows.
    """

    def __init__(self, channel: Channel, sources: Sources) -> None:
        self._channel = channel
        self._sources = sources
        self._requests: SimpleQueue[tuple[int, object, object] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._addresses: dict[str, str] = {}  # of files that have a digest
        self._count = self._waiting = 0
        self._lock = new_lock()
        self._is_over = False
        self.problems: deque[str] = deque(maxlen=PROBLEMS_SHOWN)
        channel.setcallback(self._on_request)

    def close(self) -> None:
        """End it.  A thread that still waits for an index is left to do so."""
        self._is_over = True
        self._channel.close()
        deadline = monotonic() + END_S
        for _ in self._threads:
            self._requests.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))

    def _on_request(self, item: object) -> None:
        if type(item) is not tuple or len(item) != 3 or type(item[0]) is not int:
            raise ValueError("no request to an index")
        with self._lock:
            self._count += 1
            self._waiting += 1
            if self._count > REQUESTS_MAX or self._waiting > WAITING_MAX:
                raise ValueError("too many requests to an index")
            is_thread_missing = len(self._threads) < min(THREADS, self._waiting)
        self._requests.put(item)
        if is_thread_missing and not self._is_over:
            thread = threading.Thread(target=self._serve, name="execnet-index", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self) -> None:
        while not self._is_over:
            request = self._requests.get()
            if request is None:
                return
            self._answer(*request)

    def _answer(self, number: int, kind: object, what: object) -> None:
        try:
            self._send_answer(number, str(kind), str(what))
        except (OSError, EOFError, ValueError, LookupError) as exc:
            # OSError may be the channel's own, which is closed then.
            status = 404 if isinstance(exc, (LookupError, FileNotFoundError)) else 502
            if isinstance(exc, urllib.error.HTTPError):
                status = exc.code
            asked = f"project {str(what)[:100]}" if kind == "simple" else "a file"
            self.problems.append(f"{asked}: {exc}")
            with suppress(OSError, EOFError):
                self._channel.send((number, status, HTML, ""))
                self._channel.send((number, None))
        finally:
            with self._lock:
                self._waiting -= 1

    def _send_answer(self, number: int, kind: str, what: str) -> None:
        if kind == "simple" and PROJECT.fullmatch(what):
            files = self._sources.project_files(what)
            if not files:
                raise LookupError("it is not in the index")
            self._send(number, HTML, "", [self._sources.page(files, "../../")])
        elif kind == "links" and not what:
            self._send(number, HTML, "", [self._sources.page(self._sources.link_files(), "../")])
        elif kind == "file" and (match := FILE.fullmatch(what)):
            digest, url = self._sources.file(int(match[1]), bool(match[2]))
            if digest:
                self._addresses[digest] = url
                self._send(number, BYTES, digest, ())
            else:
                self._send(number, BYTES, "", self._sources.pieces(url))
        elif kind == "content" and DIGEST.fullmatch(what):
            self._send(number, BYTES, "", self._sources.pieces(self._addresses[what]))
        else:
            raise ValueError("no request to an index")

    def _send(self, number: int, type: str, digest: str, pieces: Iterable[bytes]) -> None:
        """Send an answer; a read that fails is reported before the head is sent, if it can be."""
        pieces = iter(pieces)
        first = next(pieces, b"")
        self._channel.send((number, 200, type, digest))
        if first:
            self._channel.send((number, first))
        for piece in pieces:
            if self._is_over:
                return
            self._channel.send((number, piece))
        self._channel.send((number, None))
