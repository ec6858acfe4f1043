"""Workers reached through a socket: the stream to one, and servers started through a gateway.

Start at ``create_io`` for ``socket=`` and at ``start_via`` for ``installvia=``.  The server is
``script/socketserver.py``; the authentication is in ``_transports/proof.py``.
"""

from __future__ import annotations

import os
from contextlib import suppress
from errno import EINPROGRESS
from functools import partial

from ._clock import monotonic
from ._endpoint import Endpoint, StreamFull
from ._errors import AuthenticationError, BootstrapError, HostNotFound, HostRefused
from ._ship.source import source_to_send
from ._specs import CONNECT_TIMEOUT_S
from ._transports.keys import Wish, certificate, own_key, trusts_others
from ._transports.proof import SocketTalk, TurnedAway, prove
from .gateway_base import (
    DataFormatError,
    ExecModel,
    RemoteError,
    _Flag,
    above_stdio,
    threads_are_patched,
    write_all,
)
from .script import socketserver
from .script.socketserver import format_address, is_loopback, keep_alive, owner_of, parse_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    from ._endpoint import LoopEnds, ReadyWay
    from ._features.direct import DirectReads
    from ._specs import Settings
    from .gateway import Gateway
    from .script.socketserver import Address

LOOPBACK = "127.0.0.1"
TRIES = 5  # at a server that ends connections before anything is proved, as in a crowd
ANY_HOST = "0.0.0.0", "::"
LOOK_MS = 200  # how often an attempt to connect looks whether somebody waits for it


class SocketIO(Endpoint):
    """The stream to a worker over one connection.

    One thread reads and one at a time writes; any may call ``kill``.  The descriptor is closed
    when both directions are, and the one that is written is not while somebody writes.
    """

    def __init__(self, sock: Any, execmodel: ExecModel, remoteaddress: str) -> None:
        self.execmodel = execmodel
        self.args = [f"socket={remoteaddress}"]  # for messages, since no command is run
        self.remoteaddress: str | None = remoteaddress
        self._sock = sock
        self._ended = _Flag(execmodel)  # nothing will be read any more
        self._closed_read = self._closed_write = self._never_waits = False
        self.small_bytes = 4096 if execmodel.has_main_thread else 0
        # Sockets of greenlet libraries contain another one, which does not wait.
        within = sock
        if not execmodel.has_main_thread:
            within = getattr(sock, "_sock", None) or getattr(sock, "fd", sock)
        self.write_some = within.send
        self.write_pieces = getattr(sock, "sendmsg", None) if within is sock else None
        self.read_into = getattr(sock, "recv_into", None) if execmodel.has_main_thread else None

    @property
    def sock(self) -> Any:
        """The connection, for what reads and writes it in place of this."""
        return self._sock

    def read_some(self, limit: int) -> bytes:
        """Return available bytes, up to ``limit``; wait for the first; b"" at the end."""
        goes_on = False
        try:
            data: bytes = self._sock.recv(limit)
            goes_on = bool(data)
        except BlockingIOError:  # it never waits, and nothing is there
            goes_on = True
            raise
        finally:
            if not goes_on:
                self._ended.set()
        return data

    def shared_fd(self) -> int:
        """Return the descriptor if it can be polled along with others."""
        import select

        can_poll = hasattr(select, "epoll") and self.execmodel.has_main_thread
        return self._sock.fileno() if can_poll and not threads_are_patched() else -1

    def on_silence(self, reason: str) -> bool:
        """Whether something has come that nobody has had the time to read."""
        try:
            return self.has_more(0)
        except (OSError, ValueError):  # it is closed
            return False

    def in_loop(self) -> LoopEnds | None:
        """Never wait from now on; return what an event loop polls."""
        self._never_waits = True
        self._sock.setblocking(False)
        fd: int = self._sock.fileno()
        return fd, partial(SocketIO.read_some, self), fd  # what is around it in others may wait

    def direct_reads(self) -> DirectReads | None:
        """Return what lets other threads read, None once it is closed."""
        from ._features import direct

        fd: int = self._sock.fileno()
        return direct.DirectReads(fd, self.execmodel) if fd >= 0 else None

    def write(self, data: bytes) -> None:
        """Write all of it."""
        write_all(self, data)

    def ready_way(self) -> tuple[int, ReadyWay] | None:
        """Return what can be polled for more room, and what writes without waiting."""
        flag = getattr(self.execmodel.socket, "MSG_DONTWAIT", None)
        if self.write_pieces is None or flag is None:
            return None
        return self._sock.fileno(), (self.write_pieces, (), flag)

    def wait_writable(self) -> None:
        """Wait until something can be written; ``StreamFull`` if this never waits."""
        if self._never_waits:
            raise StreamFull
        self.execmodel.wait_writable(self._sock.fileno())

    def can_write_now(self) -> bool:
        """Whether a few KiB can be written without waiting."""
        import select

        try:
            fd = self._sock.fileno()
            if hasattr(select, "poll"):
                poll = select.poll()
                poll.register(fd, select.POLLOUT)
                return bool(poll.poll(0))
            return bool(select.select([], [fd], [], 0)[1])
        except (OSError, ValueError):  # it is closed: writing will tell
            return True

    def has_more(self, wait_ms: int) -> bool:
        """Whether something can be read, by now or so many milliseconds later."""
        import select

        if not hasattr(select, "poll"):
            return False
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLIN)
        return bool(poll.poll(wait_ms))

    def close_write(self) -> None:
        """Close for writing; what the other side still sends can be read."""
        self._closed_write = True
        if not self._ended.is_set():
            self._shutdown(self.execmodel.socket.SHUT_WR)
        self._close()

    def close_read(self) -> None:
        """Close the connection, both ways: nobody reads any more."""
        self._closed_read = True
        self._ended.set()
        self._shutdown(self.execmodel.socket.SHUT_RDWR)  # a writer that waits gives up
        self._close()

    def _close(self) -> None:
        if self._closed_read and self._closed_write:
            self._sock.close()

    def kill(self) -> None:
        """End the connection at once, so that the far worker ends."""
        if not self._ended.is_set():  # whatever it has told, nobody knows how it ends now
            self.told_status = None
        self._shutdown(self.execmodel.socket.SHUT_RDWR)
        self._ended.set()

    def _shutdown(self, how: int) -> None:
        with suppress(OSError):  # the other side did it first, or it is closed
            self._sock.shutdown(how)

    def wait(self) -> int | None:
        """Wait for the end of the stream; return as ``poll_until``."""
        self._ended.wait()
        return self._status()

    def poll_until(self, deadline: float) -> int | None:
        """Wait for the end of the stream until ``time.monotonic()`` reaches the deadline.

        Returns the exit status that the worker has told in a goodbye.  None means that the stream
        goes on, or that it is not known how the worker ended.
        """
        if not self._ended.is_set() and self._is_at_end():
            self._ended.set()
        self._ended.wait(max(0.0, deadline - monotonic()))
        return self._status()

    def _is_at_end(self) -> bool:
        """Whether only the end can be read; then a thread that reads directly met it."""
        if not self.execmodel.has_main_thread:  # none does
            return False
        socket = self.execmodel.socket
        try:
            return not self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except (BlockingIOError, AttributeError):  # Windows has no such flag, and no such threads
            return False
        except OSError:
            return True

    def has_ended(self) -> bool:
        """Whether the stream has ended; the worker does not outlive it for long."""
        return self._ended.is_set()

    def disown(self) -> None:
        """In a forked process: let go of the connection, which is the parent's."""
        self._sock.close()

    def _status(self) -> int | None:
        return self.told_status if self._ended.is_set() else None


def create_io(
    settings: Settings,
    execmodel: ExecModel,
    find_gateway: Callable[[str], Gateway] | None = None,
    is_over: Callable[[], bool] | None = None,
) -> Endpoint:
    """Connect to the server that a spec names, or to one started through ``installvia=``.

    find_gateway: returns the gateway that has an id.  is_over: whether nobody waits for it any
    more.  Raises ``HostNotFound`` if nobody answers there, ``AuthenticationError`` if the server
    does not match the spec, ValueError for an unknown gateway.
    """
    address, spec = settings.address, settings.spec
    timeout_s = settings.connect_timeout_s
    if not spec.installvia:
        assert address is not None  # the spec was checked
        wish = Wish(spec) if isinstance(address, tuple) else None
        return _connect(address, execmodel, timeout_s, wish, trusts_others(spec), is_over)
    gateway = find(spec.installvia, find_gateway)
    return install(gateway, settings, execmodel, timeout_s, timeout_s or CONNECT_TIMEOUT_S)


def install(
    gateway: Gateway,
    settings: Settings,
    execmodel: ExecModel,
    timeout_s: float | None,
    listen_s: float,
    is_over: Callable[[], bool] | None = None,
) -> Endpoint:
    """Start a server for one connection on a gateway's worker, and connect to it.

    listen_s: how long it listens.  is_over and errors as for ``create_io``.
    """
    key = os.urandom(32)
    # One client, with the key: nobody else gets in, even if others can connect.
    guard = {"clients": 1, "key": key.hex(), "listen_s": listen_s}
    address = _install(gateway, settings.address, guard, timeout_s)
    io = _connect(address, execmodel, timeout_s, Wish(settings.spec, key), is_over=is_over)
    io.starter = gateway
    return io


def dial(
    settings: Settings, execmodel: ExecModel, deadline: float, is_over: Callable[[], bool]
) -> Endpoint:
    """Connect to the server of a spec anew, until a deadline or nobody wants that any more.

    deadline: as ``time.monotonic()``.  Errors as for ``create_io``, after which nothing is left.
    """
    address, is_trusted = settings.address, trusts_others(settings.spec)
    assert address is not None  # the spec was checked
    wish = Wish(settings.spec) if isinstance(address, tuple) else None
    left_s = max(0.001, deadline - monotonic())
    return _connect(address, execmodel, left_s, wish, is_trusted, is_over)


def start_via(gateway: Gateway, hostport: tuple[str, int] | None = None) -> tuple[str, int]:
    """Start a socket server on a gateway's worker; return the (host, port) to connect to.

    It serves any number of clients that have this user's key, ``~/.execnet/key``, and ends with
    the gateway.  hostport: where to listen, port 0 for a free one.  By default, a worker on this
    machine listens on the loopback interface, and one elsewhere on all interfaces, with TLS.
    Raises ``BootstrapError`` if the server can't listen.
    """
    gateway.refuse_blocking()  # one of ``execnet.aio`` does
    options = {"clients": 0, "key": own_key().hex()}
    return _install(gateway, hostport, options, CONNECT_TIMEOUT_S)


def _install(
    gateway: Gateway, hostport: Address | None, options: dict[str, object], timeout_s: float | None
) -> tuple[str, int]:
    """Start a server with options of ``serve_channel``, which runs beside other code."""
    if isinstance(hostport, str):
        raise ValueError(f"a server that is installed listens at host:port, not at {hostport!r}")
    reached = _host_of(gateway)
    if hostport is None:
        hostport = _where_to_listen(reached), 0
    if not is_loopback(hostport) and hostport[0] != "localhost":
        options = {**options, "certificate": certificate()}
    try:
        channel = gateway.execute_source(
            socketserver, *source_to_send(socketserver, gateway.has_old_python())
        )
        channel.send((*hostport, options))
        answer = channel.receive(timeout_s)
        channel.waitclose(timeout_s)
    except (RemoteError, DataFormatError, EOFError, OSError) as exc:
        where = format_address(hostport)
        hint = "; via= needs no server" if "certificate" in options else ""
        raise BootstrapError(f"{gateway.id} can't serve at {where}{hint}: {exc}") from exc
    port = answer[1] if isinstance(answer, tuple) and len(answer) == 2 else None
    if type(port) is not int or not 0 < port < 65536:
        raise BootstrapError(f"{gateway.id} says that it serves at {repr(answer)[:80]}")
    # A worker must not choose where we connect: the source and the variables would go there.
    return reached if hostport[0] in ANY_HOST else hostport[0], port


def _where_to_listen(reached: str) -> str:
    if reached == "localhost" or reached == "::1" or reached.startswith("127."):
        return reached
    return "::" if ":" in reached else "0.0.0.0"


def _host_of(gateway: Gateway) -> str:
    """Return the host name or address of a gateway's machine."""
    address = gateway.remoteaddress
    if address is None:
        via = gateway.spec.via
        group = gateway._group if via else None
        return _host_of(group[via]) if group else LOOPBACK
    if gateway.spec.socket:
        place = parse_address(address)
        return place[0] if isinstance(place, tuple) else LOOPBACK
    destination = address.split()[-1]  # after the options of ssh
    return destination.rpartition("@")[2]


def find(installvia: str, find_gateway: Callable[[str], Gateway] | None) -> Gateway:
    """Return the gateway of a group with an id; ValueError if there is none."""
    try:
        if find_gateway is not None:
            return find_gateway(installvia)
    except KeyError:
        pass
    raise ValueError(f"installvia={installvia}: the group has no such gateway")


def _connect(
    address: Address,
    execmodel: ExecModel,
    timeout_s: float | None,
    wish: Wish | None,
    is_trusted: bool = False,
    is_over: Callable[[], bool] | None = None,
) -> Endpoint:
    """Return a stream to a server; ``HostNotFound`` if there is none within the timeout.

    timeout_s: None for ever.  wish: the authentication; None at a path, where the other end has to
    be a process of this user or of root, unless it ``is_trusted``.  is_over: whether nobody waits
    for it any more.
    """
    name = format_address(address)
    deadline = None if timeout_s is None else monotonic() + timeout_s
    error: Exception = OSError("the name has no address")
    try:
        for place in _places(address, execmodel):
            for is_last in (False,) * (TRIES - 1) + (True,):
                try:
                    sock = _connected(place, execmodel, deadline, is_over)
                except OSError as exc:
                    error = exc
                    break
                try:
                    return _proved(sock, execmodel, name, deadline, wish, is_trusted)
                except TurnedAway as exc:
                    if is_last:
                        raise AuthenticationError(str(exc)) from exc
    except AuthenticationError:
        raise
    except (OSError, UnicodeError) as exc:  # UnicodeError: no name of a host could be so
        error = exc
    raise _not_reached(name, error, timeout_s) from error


def _not_reached(name: str, error: Exception, timeout_s: float | None) -> HostNotFound:
    what = str(error)
    if isinstance(error, TimeoutError) and timeout_s is not None:
        what = f"no answer within {timeout_s:g} s"
    kind = HostRefused if isinstance(error, ConnectionRefusedError) else HostNotFound
    return kind(
        f"can't connect to {name}: {what}. Does execnet/script/socketserver.py run there, "
        "and does it listen on more than its loopback interface?"
    )


def _proved(
    sock: socket.socket,
    execmodel: ExecModel,
    name: str,
    deadline: float | None,
    wish: Wish | None,
    is_trusted: bool,
) -> Endpoint:
    """Return the stream over a connection, after both sides have authenticated."""
    try:
        talk = SocketTalk(sock)
        if wish is not None:
            prove(talk, wish, name, deadline)
        elif not is_trusted:
            _check_owner(sock, name)
        sock.settimeout(None)
        io = SocketIO(sock, execmodel, name)
        if talk.tls is None:
            return io
        from ._transports.tls import TlsIO

        return TlsIO(io, talk.tls)
    except BaseException:
        sock.close()
        raise


def _check_owner(sock: socket.socket, name: str) -> None:
    """Raise ``AuthenticationError`` if another user's process listens at a path."""
    owner = owner_of(sock, name.partition(":")[2])
    if owner not in (0, os.geteuid()):
        raise AuthenticationError(
            f"{name}: user {owner} listens there, not this one; authentication=none trusts "
            "them, but env: is only for this user and root"
        )


def _places(address: Address, execmodel: ExecModel) -> list[tuple[int, Address]]:
    """Return (family, address to connect to) for everything that an address can mean."""
    socket = execmodel.socket
    if isinstance(address, str):
        return [(socket.AF_UNIX, address)]
    host: str | bytes = address[0]
    if address[0].isascii() and execmodel.has_main_thread:
        host = address[0].encode()  # else the codec for names in all letters is loaded
    found = socket.getaddrinfo(host, address[1], 0, socket.SOCK_STREAM)
    return [(family, place) for family, _, _, _, place in found]


def _connected(
    place: tuple[int, Address],
    execmodel: ExecModel,
    deadline: float | None,
    is_over: Callable[[], bool] | None,
) -> Any:
    kind = execmodel.socket.SOCK_STREAM
    sock = execmodel.socket.socket(place[0], kind)
    if sock.fileno() <= 2:
        sock = execmodel.socket.socket(place[0], kind, 0, above_stdio(sock.detach()))
    try:
        if deadline is not None:
            sock.settimeout(max(0.001, deadline - monotonic()))
        if is_over is None:
            sock.connect(place[1])
        else:
            _await_connection(sock, place[1], deadline, is_over)
        sock.settimeout(None)
        keep_alive(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _await_connection(
    sock: socket.socket, address: Address, deadline: float | None, is_over: Callable[[], bool]
) -> None:
    """Connect, looking now and then whether nobody wants that any more; OSError then, too."""
    import select
    import socket

    sock.setblocking(False)
    error = sock.connect_ex(address)
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLOUT)
    while error == EINPROGRESS:
        if is_over() or (deadline is not None and monotonic() >= deadline):
            raise TimeoutError("no answer came in time")
        if poll.poll(LOOK_MS):
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))
