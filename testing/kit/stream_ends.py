"""Streams of every kind, each with its far end in the test's hands. Start at ``Stream``.

What is at the far end reads and writes nothing by itself: its descriptors are given to the test.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import ssl
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from models import EXECMODELS
from processes import stop
from tools import BOUND_S, Task, missing, wait_until

from execnet import Group, XSpec, gateway_io
from execnet._transports.tls import Tls as TlsState
from execnet._transports.tls import TlsIO
from execnet.gateway_base import (
    ExecModel,
    FrameDecoder,
    Message,
    get_execmodel,
    loads_internal,
)
from execnet.script import socketserver

# Gives its stdin and stdout away, and ends with the connection over which it did.
GIVER = """
import os, socket, sys
control = socket.socket(socket.AF_UNIX)
control.connect(sys.argv[1])
socket.send_fds(control, [b"x"], [0, 1])
null = os.open(os.devnull, os.O_RDWR)
os.dup2(null, 0)
os.dup2(null, 1)
control.recv(1)
os._exit(0)
"""


class Far:
    """The far end of a stream: what arrives is read from one descriptor, the other is written.

    end: ends the process there, if there is one.  The execution model's other threads or
    greenlets run while something waits here.
    """

    def __init__(self, reader: int, writer: int, end: Callable[[], object], model: ExecModel):
        self._fds = [reader, writer]
        self._end = end
        self._model = model
        self._decoder = FrameDecoder()
        self._frames: list[tuple[int, bytes]] = []
        for fd in self._fds:
            os.set_blocking(fd, False)

    def read_some(self, limit: int) -> bytes:
        """Return what has arrived, b"" at the end; wait for it."""
        data: bytes = self._when_ready(partial(self._read, limit))
        return data

    def _read(self, limit: int) -> bytes:
        return os.read(self._fds[0], limit)

    def _write(self, data: bytes) -> int:
        return os.write(self._fds[1], data)

    def read_to_end(self) -> bytes:
        return b"".join(iter(lambda: self.read_some(1 << 20), b""))

    def frames(self, count: int, limit: int = 1 << 20) -> list[tuple[int, bytes]]:
        """Return the next frames as (channel id, payload); read at most so much at once."""
        while len(self._frames) < count:
            data = self.read_some(limit)
            assert data, f"the stream has ended after {len(self._frames)} of {count} frames"
            messages = self._decoder.feed(data)
            self._frames += [(message.channelid, message.data) for message in messages]
        found, self._frames = self._frames[:count], self._frames[count:]
        return found

    def write(self, data: bytes) -> None:
        start = 0
        while start < len(data):
            start += self._when_ready(partial(self._write, data[start:]))

    def give_up(self) -> int:
        """Return a descriptor for both directions, which waits; this end is no more."""
        fd = self._fds.pop()
        os.close(self._fds.pop())
        os.set_blocking(fd, True)
        return fd

    def end(self) -> None:
        """Close both directions, and end the process."""
        while self._fds:
            os.close(self._fds.pop())
        self._end()

    def _when_ready(self, call: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + BOUND_S
        while True:
            try:
                return call()
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                assert time.monotonic() < deadline, "nothing arrives, or nothing is taken"
                self._model.sleep(0.001)


class FarTls(Far):
    """The far end of a connection with TLS."""

    def __init__(self, sock: ssl.SSLSocket, model: ExecModel) -> None:
        super().__init__(sock.fileno(), os.dup(sock.fileno()), sock.detach, model)
        sock.setblocking(False)  # else it waits by itself
        self._sock = sock

    def _read(self, limit: int) -> bytes:
        return self._sock.recv(limit)

    def _write(self, data: bytes) -> int:
        return self._sock.send(data)


class Stream(ABC):
    """A kind of stream; ``ALL`` has one of each.

    To have another kind tested, write a class with ``make`` and add it to ``ALL``.  It may name
    the ``models`` that it works in, if these are not all, and has to look to it that nothing
    is left when its ``with`` block has ended.  ``end_status`` is the exit status of what is at the
    far end, once that has ended, None where nothing tells it.
    """

    models: tuple[str, ...] = EXECMODELS
    end_status: int | None = 0
    reads_in_pieces = False  # those in which it came, however little is asked for

    @abstractmethod
    def make(self, model: ExecModel) -> Any:
        """Return a context manager that gives (the stream, its far end)."""

    def written(self, io: Any) -> Any:
        """Return the stream whose ``write_some`` takes what one system call does, None for none."""
        return io

    def steps(self, io: Any) -> list[tuple[Any, str]]:
        """Return the (object, name of a member) that are called, in turn, to write a frame."""
        names = "write_some", "write_pieces", "wait_writable"
        return [(io, name) for name in names if getattr(io, name, None)]


@contextmanager
def giver(model: ExecModel) -> Iterator[tuple[str, Callable[[], Far]]]:
    """Give (a command of the program that gives its ends away, what returns these)."""
    folder = tempfile.mkdtemp(prefix="far")  # short, as the names of such sockets have to be
    program, place = Path(folder, "giver.py"), f"{folder}/socket"
    program.write_text(GIVER.replace("sys.argv[1]", repr(place)))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen()
        listener.setblocking(False)
        controls: list[socket.socket] = []

        def accepted() -> bool:
            with suppress(BlockingIOError):
                controls.append(listener.accept()[0])
            return bool(controls)

        def far() -> Far:
            wait_until(accepted, BOUND_S, sleep=model.sleep)
            (control,) = controls
            control.setblocking(True)
            _, fds, _, _ = socket.recv_fds(control, 1, 2)
            return Far(fds[0], fds[1], control.close, model)

        try:
            yield f"{sys.executable} -S {program}", far
        finally:
            for control in controls:
                control.close()
            shutil.rmtree(folder)


def leave(io: Any, far: Far) -> None:
    """End a stream and what is at its far end."""
    far.end()
    io.kill()
    for close in io.close_write, io.close_read:
        with suppress(OSError, ValueError):
            close()
    io.wait()


class Popen(Stream):
    """Two pipes to a process of our own."""

    @contextmanager
    def make(self, model: ExecModel) -> Iterator[tuple[Any, Far]]:
        with giver(model) as (command, far):
            io = gateway_io.create_io(XSpec(f"popen//id=x//python={command}"), model)
            end = far()
            try:
                yield io, end
            finally:
                leave(io, end)


class Socket(Stream):
    """A connection over the loopback interface."""

    end_status = None

    @contextmanager
    def make(self, model: ExecModel) -> Iterator[tuple[Any, Far]]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            port = listener.getsockname()[1]
            spec = XSpec(f"socket=127.0.0.1:{port}//authentication=none//id=x")
            io = gateway_io.create_io(spec, model)
            fd = listener.accept()[0].detach()
            end = Far(fd, os.dup(fd), lambda: None, model)
            try:
                yield io, end
            finally:
                leave(io, end)


class Tls(Socket):
    """The same with TLS."""

    @contextmanager
    def make(self, model: ExecModel) -> Iterator[tuple[Any, Far]]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile() as file:
            file.write(_certificate())
            file.flush()
            context.load_cert_chain(file.name)
        with super().make(model) as (inner, far):
            plain = socket.socket(fileno=far.give_up())
            sock = context.wrap_socket(plain, True, do_handshake_on_connect=False)
            tls = TlsState()
            shaking = Task(get_execmodel("thread"), sock.do_handshake)
            tls.begin(inner.read_some, inner.write)
            shaking.result()
            end = FarTls(sock, model)
            try:
                yield TlsIO(inner, tls), end
            finally:
                end.end()

    def written(self, io: Any) -> Any:
        return io._io

    def steps(self, io: Any) -> list[tuple[Any, str]]:
        return [(io, "hand_in"), *super().steps(io._io)]


@functools.cache
def _certificate() -> bytes:
    if shutil.which("openssl") is None:
        missing("the program openssl")
    made: bytes = socketserver.make_certificate()
    return made


class Via(Stream):
    """A process that the worker of another gateway has started."""

    reads_in_pieces = True

    @contextmanager
    def make(self, model: ExecModel) -> Iterator[tuple[Any, Far]]:
        group = Group(execmodel=model)
        try:
            carrier = group.makegateway("popen//id=carrier")
            with giver(model) as (command, far):
                spec = XSpec(f"popen//id=x//via=carrier//python={command}")
                io = gateway_io.create_io(spec, model, lambda id: group[id])
                end = far()
                try:
                    yield io, end
                finally:
                    leave(io, end)
            assert carrier.hasreceiver()
        finally:
            group.terminate(timeout=5)

    def written(self, io: Any) -> Any:
        return None  # a channel takes all of a piece or nothing

    def steps(self, io: Any) -> list[tuple[Any, str]]:
        carrier = io._via
        return [
            (io, "write_some"),
            (io, "hand_in"),
            (carrier._writer, "frame"),
            (carrier._writer, "deliver"),
            *super().steps(carrier._io),
        ]


class Forked(Stream):
    """Two pipes to a process that a template has forked."""

    end_status = -signal.SIGKILL

    @contextmanager
    def make(self, model: ExecModel) -> Iterator[tuple[Any, Far]]:
        io: Any = gateway_io.create_io(XSpec("popen//id=x//forkserver"), model)
        fds = [os.dup(fd) for fd in io._theirs]
        marker = b"\0here\n"
        io.boot({"id": "x", "marker": marker, "execmodel": "thread", "codecs": ["classic"]})
        pid = self._await_hello(io, marker)
        stop(pid)  # so that it reads nothing

        def end() -> None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

        far = Far(fds[0], fds[1], end, model)
        try:
            yield io, far
        finally:
            leave(io, far)

    def _await_hello(self, io: Any, marker: bytes) -> int:
        said, decoder = b"", FrameDecoder()
        while marker not in said:
            said += io.read_some(65536)
        messages = list(decoder.feed(said.partition(marker)[2]))
        while not messages:
            messages += decoder.feed(io.read_some(65536))
        assert messages[0].msgcode == Message.HELLO
        hello: dict[str, int] = loads_internal(messages[0].data)
        return hello["pid"]


ALL: dict[str, Stream] = {
    "popen": Popen(),
    "socket": Socket(),
    "tls": Tls(),
    "via": Via(),
    "fork": Forked(),
}
