"""``output=forward``: the lines that workers write come here, and go where the user says.

The worker's half is ``_output.far``, which is sent to it.  Start at ``Output``.
"""

from __future__ import annotations

import sys
import threading
from contextlib import suppress

from .._clock import monotonic
from .._ends import fork
from .._errors import BootstrapError
from .._features.credit import Credit
from .._ship.source import source_to_send
from ..gateway_base import Message, RemoteError, _Flag, dumps_internal, new_lock, printable
from . import far as output_far
from .far import LAST_BYTES, LINE_BYTES, WINDOW_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import ModuleType
    from typing import TypeGuard

    from ..gateway import Gateway
    from ..gateway_base import Channel, ExecModel, Inbox

    Callback = Callable[[Gateway, str, str], object]
    Lines = tuple[int, bytes, int]  # stream, bytes, how many lines before them were dropped

DRAIN_S = 10.0  # how long a group that ends waits for a callback if it has no time limit
LAST_S = 0.5  # how long it waits for a callback at least
NO_WINDOW = 1 << 60  # bytes
# What may come beyond the window: what a worker has left at its end, and the rest of a piece.
ALLOWANCE = LAST_BYTES + 4 * LINE_BYTES
STREAMS = {1: "stdout", 2: "stderr"}
_IN_SERVICE = "def serve(channel, **how): channel.gateway.forward(**how)"


def send_code(gateway: Gateway, code: ModuleType | str, arguments: Mapping[str, object]) -> Channel:
    """Make a worker run ``serve(channel, **arguments)`` of a module; return the channel.

    This does not count as something that the user has asked for.
    """
    channel: Channel = gateway.newchannel()
    source, file_name, _ = source_to_send(code, gateway.has_old_python())
    task = source, file_name, "serve", arguments
    gateway.send_message(Message.CHANNEL_EXEC, channel.id, dumps_internal(task, gateway))
    return channel


class Output:
    """Passes the lines of a group's workers on, one after the other.

    ``callback(gateway, stream name, line)`` runs in a thread or greenlet of its own, which exists
    while a worker forwards, so a callback that waits or fails stops no gateway.  ``_lock`` guards
    the count of those workers.  is_patient: whether workers wait as long as nobody takes their
    lines, as with a pipe; otherwise they drop some after a while.  on_end: called with a gateway
    in that thread, after its last line.
    """

    def __init__(self, is_patient: bool = False, on_end: Callable[[Gateway], object] = id) -> None:
        self._is_patient = is_patient
        self._on_end = on_end
        self._callback: Callback | None = None
        self._reported = False  # whether the user knows that the callback fails
        self._lock = new_lock()  # held only for moments, so it will do for greenlets as well
        self._open = 0  # how many workers may still send lines
        self._ident = 0  # of the thread that passes them on
        self._get_ident: Callable[[], int] = threading.get_ident
        self._inbox: Inbox | None = None
        self._idle: _Flag | None = None  # set when all lines of all workers were passed on
        fork.register(self)

    def _disown(self) -> None:
        self._lock = new_lock()
        self._open, self._idle = 0, None

    def set_callback(self, callback: Callback | None) -> None:
        """Pass lines to a callback from now on; None: print them."""
        self._callback, self._reported = callback, False

    def forward(self, gateway: Gateway) -> Channel:
        """Make a worker send its lines; the returned channel closes as soon as it does.

        Raises OSError if the gateway has ended.
        """
        lines = gateway.newchannel_as((False, False))  # Python 2's str are bytes
        if gateway.settings.window_bytes is not None:
            lines.set_window(NO_WINDOW)  # the lines have a limit of their own, which an end lifts
        arguments = {"lines": lines, "is_patient": self._is_patient}
        inbox = self._begin(gateway.execmodel)
        lines.setcallback(_Source(inbox, gateway, lines).on_item, endmarker=None)
        if gateway.settings.type == "socketservice":  # whose descriptors are those of all clients
            return send_code(gateway, _IN_SERVICE, arguments)
        return send_code(gateway, output_far, arguments)

    def _begin(self, execmodel: ExecModel) -> Inbox:
        with self._lock:
            if self._inbox is None or not self._open:
                inbox, idle = execmodel.inbox(), _Flag(execmodel)
                self._get_ident = execmodel.get_ident
                execmodel.start(self._run, (inbox, idle), "execnet-output")
                self._inbox, self._idle = inbox, idle
            self._open += 1
            return self._inbox

    def drain(self, deadline: float | None) -> None:
        """Wait until ``deadline`` for the lines of ended workers, and for others to end."""
        idle, now = self._idle, monotonic()
        if idle is not None and self._get_ident() != self._ident:
            deadline = now + DRAIN_S if deadline is None else deadline
            idle.wait(max(deadline - now, LAST_S))

    # the thread that passes lines on

    def _run(self, inbox: Inbox, idle: _Flag) -> None:
        self._ident = self._get_ident()
        while True:
            source, item = inbox.get()
            if item is not None:
                try:
                    self._hand_on(source.gateway, *item)
                except BaseException:
                    self._report()
                source.acknowledge(item)
                continue
            self._on_end(source.gateway)
            with self._lock:
                self._open -= 1
                if not self._open:
                    self._ident = 0
                    idle.set()
                    return

    def _hand_on(self, gateway: Gateway, fd: int, data: bytes, dropped: int) -> None:
        lines = data.decode("utf-8", "replace").split("\n")
        if not lines[-1]:
            lines.pop()
        if dropped:
            lines.insert(0, f"... {dropped} lines were dropped, as nobody took them ...")
        if self._callback is None:
            _print(fd, "".join(f"[{gateway.id}] {printable(line)}\n" for line in lines))
            return
        for line in lines:
            callback = self._callback
            try:
                if callback is not None:
                    callback(gateway, STREAMS[fd], line)
            except BaseException:
                self._report()

    def _report(self) -> None:
        """Report once what the callback raised, as there is nobody to raise it to."""
        import traceback

        if not self._reported:
            self._reported = True
            with suppress(Exception):
                text = traceback.format_exc()
                sys.stderr.write(f"execnet: handing on the output of workers failed:\n{text}")


class _Source:
    """A worker's lines; ``on_item`` runs in the receiver thread, the rest in that of Output."""

    def __init__(self, inbox: Inbox, gateway: Gateway, channel: Channel) -> None:
        self._inbox = inbox
        self.gateway = gateway
        self._channel = channel
        self._credit = Credit(WINDOW_BYTES)
        self._is_refused = False

    def on_item(self, item: object) -> None:
        if self._is_refused:
            return
        if item is not None and not _is_output(item):
            self._is_refused = True  # only for this worker
            self._inbox.put((self, (2, b"execnet: its output is garbled, and is dropped", 0)))
            item = None
        elif item is not None:
            self._credit.sent += len(item[1])
            if self._credit.is_exceeded(ALLOWANCE):
                self._is_refused = True
                self.gateway.give_up("its output does not wait until it is read")
                item = None
        self._inbox.put((self, item))

    def acknowledge(self, item: Lines) -> None:
        report = self._credit.take(len(item[1]))
        if report and not self._channel.isclosed():
            # Not ``send``: a stopped worker must not hold up the lines of others.
            self.gateway.post_message(
                Message.CHANNEL_DATA, self._channel.id, dumps_internal(report)
            )


def _is_output(item: object) -> TypeGuard[Lines]:
    """Whether an item is (descriptor, bytes, number of lines that were dropped)."""
    if type(item) is not tuple or len(item) != 3:
        return False
    fd, data, dropped = item
    return type(fd) is int and fd in STREAMS and type(data) is bytes and type(dropped) is int


def _print(fd: int, text: str) -> None:
    file = sys.stdout if fd == 1 else sys.stderr
    if file is None:
        return
    try:
        file.write(text)
    except UnicodeEncodeError:
        encoding = file.encoding or "ascii"
        file.write(text.encode(encoding, "backslashreplace").decode(encoding))
    file.flush()


def forward_all(
    output: Output, gateways: Iterable[Gateway], deadlines: Mapping[str, float | None]
) -> None:
    """Make workers send their lines; returns when all of them do.

    deadlines: by the gateways' ids, the ``time.monotonic()`` by which each must do so.
    Raises ``BootstrapError`` for one that can't.
    """
    try:
        asked = [(gateway, output.forward(gateway)) for gateway in gateways]
        for gateway, code in asked:
            deadline = deadlines[gateway.id]
            code.waitclose(None if deadline is None else deadline - monotonic())
    except (RemoteError, OSError, EOFError, RuntimeError) as exc:  # Runtime: no more threads
        raise BootstrapError(f"the output of workers can't be forwarded: {exc}") from exc
