"""At a login that is kept: starts workers as ``_via.far`` does, and the next one in advance.

Most of the time that a worker takes to start goes into its interpreter and into the source that
is sent to it.  So one interpreter, the spare, does that before anybody asks for a worker: it runs
``far_waiting``.  It is a process like any other that is started here, only earlier, and it is not
used where one that is started now could differ from it.

This file is shipped to the worker of the login; it keeps to what Python 2.7 and today's Python
both accept.  Start at ``Spares``.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from .far import forward
from .far_ends import Process, pipe_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..gateway_base import Channel, ExecModel
    from .far_ends import Request

    Facts = dict[str, tuple[float, int] | None]

QUIET_S = 0.2  # without a start, before one is made in advance: it would compete with that


class Spares(object):
    """The process that waits to become the next worker, and what it was started with.

    ``_lock`` guards all of it.  One thread at a time makes a spare.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._model: Any = None
        self._words: list[str] = []
        self._line = b""
        self._spare: Process | None = None
        self._facts: Facts = {}
        self._is_planned = False
        self._asked_at = 0.0

    def begin(self, model: ExecModel, words: list[str], line: bytes) -> None:
        """Have one ready from now on.

        words: the command of an interpreter.  line: what has it load the source and wait.
        """
        with self._lock:
            self._model, self._words, self._line = model, words, line
            self._asked_at = time.time()  # as a worker, too, starts now
        self._plan()

    def take(self, request: Request) -> Process | None:
        """Return the process that waits, for a request that it fits; None: there is none."""
        with self._lock:
            if request["args"] != self._words:
                return None
            spare, self._spare = self._spare, None
            self._asked_at = time.time()
        self._plan()
        if spare is None:
            return None
        if spare.has_ended() or self._facts != facts():
            self._model.start(_drop, (spare,), "execnet-via-drop")
            return None
        spare.leads_group = request.get("leads_group")
        return spare

    def _plan(self) -> None:
        with self._lock:
            if self._is_planned or not self._words:
                return
            self._is_planned = True
        try:
            self._model.start(self._make, (), "execnet-via-spare")
        except RuntimeError:  # there can be no more threads
            self._is_planned = False

    def _make(self) -> None:
        while abs(time.time() - self._asked_at) < QUIET_S:
            time.sleep(QUIET_S)
        facts_before = facts()
        try:
            spare = Process(self._model, {"args": self._words, "stderr": True})
        except (EnvironmentError, RuntimeError):  # too many processes, descriptors or threads
            spare = None
        is_ready = spare is not None and pipe_all(spare.write_fd, self._line)
        with self._lock:
            self._is_planned = False
            if is_ready:
                self._spare, self._facts, spare = spare, facts_before, None
        if spare is not None:
            _drop(spare)


def _drop(spare: Process) -> None:
    """End a process that waits, and wait for its end."""
    os.close(spare.write_fd)
    os.close(spare.read_fd)
    spare.wait(None)


def facts() -> Facts:
    """Return what decides what an interpreter loads at its start, as far as it can change."""
    places = [sys.executable, os.path.join(sys.prefix, "pyvenv.cfg")]
    user = getattr(sys.modules.get("site"), "USER_SITE", None)
    for folder in [one for one in sys.path if one] + ([user] if user else []):
        places.append(folder)
        try:
            names = os.listdir(folder)
        except EnvironmentError:  # it is a zip, or not there
            continue
        hooks = [name for name in names if name.endswith((".pth", "customize.py"))]
        places += [os.path.join(folder, name) for name in sorted(hooks)]
    return {place: _stamp(place) for place in places}


def _stamp(place: str) -> tuple[float, int] | None:
    try:
        status = os.stat(place)
    except EnvironmentError:
        return None
    return status.st_mtime, status.st_size


spares = Spares()


def main(channel: Channel) -> None:
    """Start what the next item asks for, or begin to have spares; returns at once."""
    item = channel.receive()
    if len(item) == 2:
        import zlib

        words, packed = item
        spares.begin(channel.gateway.execmodel, words, zlib.decompress(packed))
        return
    data_channel, news, request = item
    forward(data_channel, news, request, spares.take(request))
