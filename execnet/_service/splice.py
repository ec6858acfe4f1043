"""Joins the channels of a gateway's stream, from a program to the login that starts its worker.

The program's stream is a ``KeptIO``, the far half is ``_via.far_spare``, and each item goes from
the one to the other as it is, in the receiver thread that it came in: no thread of the service's
own carries it on.  The window that both ends keep bounds what is under way.  A login is not
trusted, so what it says is looked at.  Start at ``Splice``.
"""

from __future__ import annotations

from functools import partial

from .._features.credit import Credit
from .._ship.parts import run
from .._via import far_kept
from .._via.blobs import send_shared
from .._via.far_forwarder import CHUNK_BYTES, EOF, WINDOW_BYTES
from ..gateway_base import (
    Message,
    _pack_bytes_head,
    dumps_internal,
    new_lock,
    opcode,
    printable,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..gateway import Gateway
    from ..gateway_base import BaseGateway, Channel
    from .far_find import Said


class Splice:
    """One gateway's stream.

    data, news, request: what the program has sent, as for ``_via.far``.  find: returns the gateway
    of the login, the part to run there and the request to it; waits, and raises what that raises.
    on_over: called with that gateway once the worker has ended and all its bytes have passed, or
    the login has ended; also if it could not be asked for a worker.

    ``on_item`` runs in the receiver thread of the program's connection, and ``_on_data`` and
    ``_on_news`` in the login's; none of them waits.  ``_lock`` guards what came early,
    ``_ends_lock`` what has ended.  The news of the end may come before the last bytes.
    """

    def __init__(
        self,
        data: Channel,
        news: Channel,
        request: Said,
        find: Callable[[Said], tuple[Gateway, str, dict[str, object]]],
        on_over: Callable[[Gateway], object],
    ) -> None:
        self._data, self._news, self._request = data, news, request
        self._find, self._on_over = find, on_over
        self._program = data.gateway
        self._kept = far_kept.kept_of(self._program)
        self._lock = new_lock()
        self._early: list[object] = []  # came before there was a login to pass it on to
        self._login: Gateway | None = None
        self._part = ""
        self._far_data: Channel | None = None
        self._far_news: Channel | None = None
        self._code: Channel | None = None
        self._output = Credit(WINDOW_BYTES)  # from the login
        self._ends_lock = new_lock()
        self._has_all_bytes = self._has_end = self._is_over = False

    def start(self) -> None:
        """Begin; returns at once."""
        self._data.setcallback(self.on_item, endmarker=None)
        self._program.execmodel.start(self._run, (), "execnet-kept-start")

    def _run(self) -> None:
        try:
            login, self._part, request = self._find(self._request)
        except Exception as exc:
            stderr = str(getattr(exc, "stderr", ""))
            self._tell_end(None, stderr.encode("utf-8", "replace"), str(exc).partition("\n")[0])
            return
        try:
            self._ask(login, request)
        except Exception as exc:  # it has ended since then, or there can be no more threads
            self._tell_end(None, b"", f"{type(exc).__name__}: {exc}")
            self._end(login)

    def _ask(self, login: Gateway, request: dict[str, object]) -> None:
        """Ask a login for a worker, and pass on what came early."""
        self._far_data, self._far_news = data, news = login.newchannel(), login.newchannel()
        for channel, callback in (data, self._on_data), (news, self._on_news):
            channel.reconfigure(False, False)  # Python 2's str are bytes
            channel.setcallback(partial(callback, login), endmarker=None)
        self._code = run(login, self._part, send=partial(send_shared, carries=True))
        self._code.setcallback(partial(self._on_code_end, login), endmarker=None)
        self._code.send((data, news, request))
        with self._lock:
            for item in self._early:
                self._pass_on(login, item)
            self._early.clear()
            self._login = login

    # the receiver thread of the program's connection

    def on_item(self, item: object) -> None:
        """Pass on what the program sent; None: it is gone, or needs this no more."""
        if type(item) is list:
            digest, head, tail = item
            item = b"".join([head, self._kept[digest], tail])
        elif type(item) is int and item > 0:
            self._output.taken += item
        login = self._login
        if login is None:
            with self._lock:
                login = self._login
                if login is None:
                    self._early.append(item)
                    return
        self._pass_on(login, item)

    def _pass_on(self, login: Gateway, item: object) -> None:
        far = self._far_data
        if far is None or far.isclosed():
            return
        if item is None:  # the worker gets its time to end; ``_on_news`` learns of that
            self._note(login, all_bytes=True)
            if not far.isclosed():
                _close(login, far)
        else:
            _post(login, far, item)

    # the receiver thread of the login

    def _on_data(self, login: Gateway, item: object) -> None:
        if self._is_over or self._has_all_bytes:
            return
        item = EOF if item is None else item
        if type(item) is bytes:
            self._output.sent += len(item)
            if self._output.is_exceeded(CHUNK_BYTES):
                self._refuse(login, "more was forwarded than was asked for")
                return
        elif type(item) is not int or item != EOF:
            self._refuse(login, f"an item of {type(item).__name__} came in place of bytes")
            return
        _post(self._program, self._data, item)
        if item == EOF:
            self._note(login, all_bytes=True)

    def _on_news(self, login: Gateway, item: object) -> None:
        if self._is_over:
            return
        if type(item) is int and item > 0:
            _post(self._program, self._news, item)
        elif type(item) is tuple and len(item) == 3 and _is_end(*item):
            _post(self._program, self._news, item)
            self._note(login, end=True)
        elif item is None:  # the login has ended
            if not self._has_end:
                self._tell_end(None, b"", "")
            self._end(login)
        else:
            self._refuse(login, f"an item of {type(item).__name__} came in place of news")

    def _on_code_end(self, login: Gateway, item: object) -> None:
        if item is not None or self._code is None or self._is_over:
            return
        error = self._code._getremoteerror()
        if error is None:
            login.known_parts |= {self._part}
        elif login.hasreceiver():  # else ``_on_news`` learns of the end
            kind, message = getattr(error, "type_name", None), getattr(error, "message", None)
            self._tell_end(None, b"", f"{kind}: {message}" if kind else str(error))
            self._end(login)

    def _refuse(self, login: Gateway, why: str) -> None:
        """End a login that does not keep to the protocol."""
        self._tell_end(None, b"", f"its login was ended: {why}")
        self._end(login)
        login.exit()

    # the end

    def _tell_end(self, status: int | None, stderr: bytes, reason: str) -> None:
        _post(self._program, self._news, (status, stderr, printable(reason).encode()))
        _post(self._program, self._data, EOF)

    def _note(self, login: Gateway, all_bytes: bool = False, end: bool = False) -> None:
        """Note what is over; once both are, nothing of the worker is left."""
        with self._ends_lock:
            self._has_all_bytes |= all_bytes
            self._has_end |= end
            is_over = self._has_all_bytes and self._has_end
        if is_over:
            self._end(login)

    def _end(self, login: Gateway) -> None:
        with self._ends_lock:
            if self._is_over:
                return
            self._is_over = True
        for channel in self._far_data, self._far_news:
            if channel is not None and not channel.isclosed():
                _close(login, channel)
        self._on_over(login)


def _is_end(status: object, stderr: object, reason: object) -> bool:
    known = status is None or type(status) is int
    return known and type(stderr) is bytes and type(reason) is bytes


def _post(gateway: BaseGateway, channel: Channel, item: object) -> None:
    """Have an item sent soon; never waits, and never fails."""
    if type(item) is bytes:
        size = len(item)
        head = _pack_bytes_head(Message.CHANNEL_DATA, channel.id, size + 6, opcode.BYTES, size)
        gateway._writer.post(head, item + opcode.STOP)
    else:
        gateway._post(Message.CHANNEL_DATA, channel.id, dumps_internal(item))


def _close(gateway: Gateway, channel: Channel) -> None:
    gateway._post(Message.CHANNEL_CLOSE, channel.id)
    gateway._channelfactory._local_close(channel.id)
