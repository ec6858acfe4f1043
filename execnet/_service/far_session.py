"""A session: runs code from one program after another in the main thread of a service.

Its definitions stay, as in an interpreter at a terminal: its globals are the service's ``state``.
Its output goes to the program that sent the code.  This file is shipped; it keeps to what Python
2.7 and today's Python both accept.  Start at ``serve``.
"""

from __future__ import annotations

import os
import sys
import time

from ..gateway_base import (
    PY2,
    _end_fork,
    _marked_as_utf8,
    get_ident,
    geterrortext,
    load_part,
    new_lock,
)
from . import far_find
from .far_gateway import Execution, state, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from types import TracebackType

    from .far_find import Said
    from .far_gateway import Host

    ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]

FOREVER_S = 1e9
INTERRUPTED = 130  # exit statuses, as in shells
FAILED = 1


class Client(object):
    """The sender of code, for the service's reports."""

    def __init__(self, name: str) -> None:
        self.id = name
        self.is_over = self.is_given_up = self.is_left = False


class Job(Execution):
    """Code that runs, or waits for the code of others.

    ``_lock`` guards what is sent, ``_turn`` whether it still waits.
    """

    def __init__(self, service: Host, sock: socket.socket, request: Said) -> None:
        self._service = service
        self._sock = sock
        self._source = request["code"]
        self._lock, self._turn = new_lock(), new_lock()
        self._runs = self._is_interrupted = False
        self.gateway = Client(str(request.get("client", "")))
        self.ident = service.process.main_ident
        self._thread = get_ident()  # of the connection
        self.since = time.time()
        self.waits = True
        self.code = text_of(self._source.strip().split("\n")[0][:80])

    # in the thread of the connection

    def follow(self) -> None:
        """Listen to the client until the code has ended, or the client leaves.

        An end without a word interrupts the code; a client that says that it leaves does not.
        """
        try:
            while True:
                said = far_find.read_dict(self._sock, far_find.clock() + FOREVER_S)
                if said.get("leaves"):
                    self._leave(INTERRUPTED)
                    return
                if said.get("interrupt"):
                    self._interrupt()
        except (EnvironmentError, EOFError):
            self._leave(None)
            if self._runs:
                self._interrupt()

    def _leave(self, status: int | None) -> None:
        """Send no more; what runs goes on without its client, which may be told a status."""
        if status is not None:
            self._say({"status": status})
        self.gateway.is_over = True
        self.gateway.is_given_up = self._runs

    def stop(self) -> None:
        """End it, since the service ends."""
        self._interrupt()

    def _interrupt(self) -> None:
        """Interrupt the code; if it has not begun, it never will."""
        with self._turn:
            waited, self._is_interrupted = self.waits, True
        if self._runs:
            load_part("_features.running").interrupt_main_thread(self.ident)
        elif waited:
            self.write(2, b"KeyboardInterrupt\n")
            self._leave(INTERRUPTED)

    # in the main thread

    def run(self) -> None:
        """Run the code, and send its exit status."""
        service = self._service
        with self._turn:
            if self.gateway.is_over or self._is_interrupted:
                return
            self.waits = False
        if service.running.get(self._thread) is self:
            service.running.pop(self._thread)
        service.running[self.ident] = self
        service.routes[self.ident] = self
        try:
            status = self._execute()
        finally:
            self._runs = service.process.is_interruptible = False
            for file in service.files:
                file.end_code()
            service.routes.pop(self.ident, None)
            service.running.pop(self.ident, None)
        self._say({"status": status})
        try:
            self._sock.shutdown(0)  # so that the connection's thread notices an end
        except EnvironmentError:
            pass

    def _execute(self) -> int:
        process, name, pid = self._service.process, "<session>", os.getpid()
        try:
            try:
                self._runs = process.is_interruptible = True
                if self.gateway.is_over or self._is_interrupted:  # just now
                    raise KeyboardInterrupt
                source = self._source + "\n"
                if PY2:
                    source = _marked_as_utf8(source.encode("utf-8"))
                code = compile(source, name, "exec", 0, True)
                self._remember(name)
                try:
                    exec(code, state)
                except:  # Python 2 knows only here what was raised
                    if os.getpid() != pid:
                        _end_fork(sys.exc_info()[1])
                    raise
            finally:
                self._runs = process.is_interruptible = False
                if os.getpid() != pid:
                    _end_fork(None)
            return 0
        except SystemExit as exc:
            return self._status_of(exc)
        except KeyboardInterrupt:
            sys.stderr.write("KeyboardInterrupt\n")
            return INTERRUPTED
        except:  # noqa: E722 - in Python 2 anything can be raised
            text = geterrortext(self._without_ours(sys.exc_info()))
            sys.stderr.write(text)
            return FAILED

    def _without_ours(self, error: ExcInfo) -> ExcInfo:
        kind, exc, tb = error
        while tb is not None and tb.tb_frame.f_globals is globals():
            tb = tb.tb_next
        return kind, exc, tb

    def _remember(self, name: str) -> None:
        import linecache

        lines = [line + "\n" for line in self._source.splitlines()]
        linecache.cache[name] = len(self._source), None, lines, name

    def _status_of(self, exc: SystemExit) -> int:
        code = exc.code
        if code is None or isinstance(code, int):
            return (code or 0) & 255
        sys.stderr.write("%s\n" % (code,))
        return FAILED

    def write(self, number: int, data: bytes) -> bool:
        """Send some output; return False if nobody is there, so that it goes to the log."""
        return self._say({"stream": number, "data": text_of(data)})

    def _say(self, said: Said) -> bool:
        if self.gateway.is_over:
            return False
        try:
            with self._lock:
                far_find.say(self._sock, said)
            return True
        except EnvironmentError:
            return False


def serve(service: Host, sock: socket.socket, request: Said) -> None:
    """Run code in the main thread; return when it has ended, or its client is gone."""
    state.setdefault("__name__", "__main__")
    state.setdefault("__builtins__", __import__("__builtin__" if PY2 else "builtins"))
    job = Job(service, sock, request)
    service.running[get_ident()] = job  # until it begins
    try:
        service.call_in_main(job.run)
        job.follow()
    finally:
        service.running.pop(get_ident(), None)

