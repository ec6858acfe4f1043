"""A worker within a released socket server: in its process and in the thread that calls.

Such a server executes the first line of a client itself, and serves one client after the other.
So the worker here ends no process, and leaves signals, folder, environment and modules as they
were.  Our own server starts a process for each client, which runs ``start_worker``.
The first line for ``socket=`` contains both, as its sender does not know which server listens.

This file is shipped in that line; it keeps to what Python 2.7 and today's Python both accept.
Start at ``start_in_server``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    from ..gateway_base import Popen2IO, WorkerGateway

    Connection = list[socket.socket]  # empty once the worker is done with it


class SocketFile(object):
    """The server's socket as a file of a ``Popen2IO``, until ``connection`` is emptied.

    The server closes the socket when nobody refers to it any more.  This has to happen before the
    next client comes, not at some garbage collection.
    """

    close = int

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def fileno(self) -> int:
        return self._socket().fileno()

    def read(self, size: int) -> bytes:
        return self._socket().recv(size)

    def write(self, data: bytes) -> int:
        return self._socket().send(data)

    def _socket(self) -> socket.socket:
        if not self._connection:
            raise ValueError("the connection has ended")
        return self._connection[0]


def hang_up(connection: Connection) -> None:
    """End the connection, so that whoever waits for it on either side goes on."""
    for sock in connection:
        try:
            sock.shutdown(2)
        except EnvironmentError:
            pass  # the coordinator was faster


def start_in_server(base: ModuleType, sock: socket.socket, options: dict[str, object]) -> None:
    """Be a worker on a connection, until it ends; then restore what was changed.

    base: the shipped ``gateway_base``.  options: the arguments of its ``start_worker``.
    """
    environment, folder = dict(os.environ), base._getcwd()
    sock.settimeout(None)
    if sock.family != getattr(sys.modules["socket"], "AF_UNIX", None):
        sock.setsockopt(6, 1, 1)  # TCP_NODELAY
    connection = [sock]
    file = SocketFile(connection)
    io = base.Popen2IO(file, file, base.get_execmodel("thread"))
    try:
        _start(base, io, connection, options)
    finally:
        hang_up(connection)
        del connection[:]
        os.environ.clear()
        os.environ.update(environment)
        if os.path.isdir(folder):
            os.chdir(folder)
        for name in [name for name in sys.modules if name.startswith("_execnet")]:
            module: Any = sys.modules.pop(name)
            # Python 2 empties a module that nobody refers to, though threads may still run in it.
            module._itself = module


def _start(
    base: ModuleType, io: Popen2IO, connection: Connection, options: dict[str, object]
) -> None:
    marker = options["marker"]
    try:
        for key in "nice", "kill", "limits":
            if options.get(key):
                raise ValueError("%s= would be for the whole server, which serves others too" % key)
        base.change_surroundings(options["env"], options["chdir"])
        io.execmodel = base.get_execmodel(options["execmodel"])
    except Exception as exc:
        io.write(marker + base._frame_of({"error": base._decoded(base.geterrortext(exc))}))
        return
    try:
        io.write(marker + base._hello())
        base._read_rest(io)
    except (EnvironmentError, EOFError):
        return  # the coordinator has gone
    kind = _gateway_class(base, connection)
    base._serve(io, options["id"], options["codecs"], options["grace"], kind)


def _process_class(
    base: ModuleType, connection: Connection, has_signals: bool, handler: object
) -> Any:
    process_class: Any = base.Process

    class ServerProcess(process_class):  # type: ignore[misc]
        """Keeps running when the worker has ended."""

        _is_ours = False  # whether the next SIGINT comes from here
        is_unwanted = False  # whether somebody else sent one: then the server ends

        def _on_interrupt(self, signum: int, frame: object) -> None:
            if self._is_ours:
                self._is_ours = False
                process_class._on_interrupt(self, signum, frame)
            elif handler != signal.SIG_IGN:
                self.is_unwanted = True
                hang_up(connection)

        def interrupt_main(self) -> None:
            if has_signals:
                self._is_ours = True
                process_class.interrupt_main(self)
            else:
                running = base.load_part("_features.running")
                running.interrupt_others({self.main_ident}, 0)

        def end(self, gateway: Any) -> None:
            """Let the server go on: make the calling thread leave the code that it runs.

            Threads that an interrupt does not end stay.
            """
            hang_up(connection)
            while self.main_ident in gateway._execpool.idents():
                self.interrupt_main()
                gateway._execpool.waitall(1.0)

    return ServerProcess


def _gateway_class(base: ModuleType, connection: Connection) -> Callable[..., WorkerGateway]:
    """Return a function that makes a gateway which ends its code, but not the process."""
    worker_gateway: Any = base.WorkerGateway
    has_signals = isinstance(threading.current_thread(), threading._MainThread)  # type: ignore[attr-defined]
    handler = signal.getsignal(signal.SIGINT)
    process_class = _process_class(base, connection, has_signals, handler)

    class ServedGateway(worker_gateway):  # type: ignore[misc]
        def serve(self) -> None:
            try:
                worker_gateway.serve(self)
            finally:
                if has_signals:
                    signal.signal(signal.SIGINT, handler or signal.SIG_DFL)
                if self._state == base.GatewayState.LOST:
                    self.before_close()
            if self.process.is_unwanted:
                raise KeyboardInterrupt

        def _on_silence(self, reason: str) -> None:
            self._writer.fail(reason)
            hang_up(connection)  # the receiver thread then does the rest

    return lambda **more: ServedGateway(process=process_class(), **more)
