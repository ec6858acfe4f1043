"""Calls of one gateway: requests go out, answers come back.

A call has a lane, a channel that carries nothing but answers.  ``call`` waits in ``receive`` of a
lane that no other thread uses meanwhile, so that it may read the stream itself.  The format of
requests and answers is in ``_features.calls``.  Start at ``Calls.call``.
"""

from __future__ import annotations

import builtins
import contextlib
import copy
import functools

from ..gateway_base import (
    ITEM_MAX,
    Channel,
    DumpError,
    ExecnetError,
    LoadError,
    Message,
    RemoteError,
    _refuse_in_callback,
    dumps_fast,
    dumps_internal,
    new_lock,
)
from .names import name_of, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from .._endpoint import Endpoint
    from .._ends.handshake import Handshake
    from .._features.codecs import Codec
    from .._imports.near import Forwarding
    from .._specs import Settings
    from ..gateway_base import ChannelFactory, ExecModel, FrameWriter

    class GatewayLike(Protocol):
        """What calls need from their gateway."""

        id: str
        codec: Codec | None
        execmodel: ExecModel
        handshake: Handshake
        settings: Settings
        _io: Endpoint
        _state: str

        @property
        def _writer(self) -> FrameWriter: ...
        @property
        def endpoint(self) -> Endpoint: ...
        @property
        def factory(self) -> ChannelFactory: ...
        @property
        def end_error(self) -> BaseException | None: ...
        @property
        def as_error(self) -> Callable[..., RemoteError]: ...

        _error: BaseException | None
        forwarding: Forwarding | None
        _channelfactory: ChannelFactory

        def hasreceiver(self) -> bool: ...
        def newchannel(self) -> Channel: ...
        def fitting_codec(self, codec: Codec) -> Codec: ...
        def _interrupt(self, channel_id: int, number: int | None = None) -> None: ...
        def has_old_python(self) -> bool: ...
        def _send(self, msgcode: int, channelid: int = 0, data: bytes = b"") -> None: ...
        def _post(self, msgcode: int, channelid: int = 0, data: bytes = b"") -> None: ...
        def _send_frame(self, header: bytes, payload: bytes | memoryview) -> None: ...


IDLE_MAX = 16  # lanes kept for later calls
NO_WINDOW = 1 << 60  # bytes
# What ``_features.calls`` does itself.
DESCRIBE, MANY, CODED = ":describe", ":many", ":coded"
# Places in a request, and what they are to the caller; the longer ones first.
WORDS = {
    "item[2][2][0]": "args", "item[2][2][1]": "kwargs", "item[2]": "args", "item[3]": "kwargs",
}  # fmt: skip


class Mapped:
    """A function that is called often, and is sent as it was the first time.

    in_chunks: one call carries several rows of arguments.
    """

    def __init__(self, function: object, in_chunks: bool) -> None:
        self.in_chunks = in_chunks
        self.names: dict[Calls, str] = {}
        self.before: tuple[object, ...] = ()
        self.named: dict[str, object] = {}
        while isinstance(function, functools.partial):
            self.before = function.args + self.before
            self.named = {**function.keywords, **self.named}
            function = function.func
        self.function = function


class Calls:
    """The calls of one gateway.  Any thread may call; ``_lock`` guards what was sent as source."""

    def __init__(self, gateway: GatewayLike) -> None:
        features = gateway.handshake.hello.get("features", "").split()
        if "calls" not in features:
            raise ExecnetError(
                f"{gateway.id} can't be called: its worker runs code that does not support calls;"
                " use remote_exec instead"
            )
        self.gateway = gateway
        self._idle: list[Channel] = []
        self._absent: set[str] = set()  # modules that the worker can't find
        self._sent: set[str] = set()  # keys of plans and hashes of entries
        self._ahead: set[str] = set()  # modules that were sent, if they are forwarded
        self._lock = new_lock()

    def call(
        self,
        function: object,
        positional: tuple[object, ...],
        named: dict[str, object],
        is_last: bool = False,
    ) -> Any:
        """Run a function in the worker and return its result; raises what it raised.

        is_last: this is the second time, since the worker lacks the function's module.
        """
        _refuse_in_callback(self.gateway, function)
        self.send_modules_of(function)
        codec = self.codec_for(function)
        channel, request = self.prepared(function, positional, named, codec)
        try:
            self.send(channel.id, request)
            answer = channel.receive()
        except BaseException as exc:
            self._give_up(channel, isinstance(exc, KeyboardInterrupt))
            raise
        if not self.taken(channel, answer, function, is_last):
            return self.call(function, positional, named, is_last=True)
        return answer[1] if codec is None else codec.load(answer[1])

    def prepared(
        self,
        function: object,
        positional: tuple[object, ...],
        named: dict[str, object],
        codec: Codec | None,
    ) -> tuple[Channel, bytes]:
        """Return a lane that nothing else uses, and a request for it; raises as ``request``."""
        request = self.request(0, function, positional, named, codec)
        try:
            return self._idle.pop(), request
        except IndexError:
            return self.new_lane(), request

    def taken(self, channel: Channel, answer: object, function: object, is_last: bool) -> bool:
        """Free the lane of an answer; raise its error; False if the call has to be made again."""
        if len(self._idle) < IDLE_MAX:
            self._idle.append(channel)
        else:
            channel.close()
        if type(answer) is tuple and len(answer) == 2:
            return True
        error = self.error_of(answer, function, is_last)
        if error is not None:
            raise error
        if is_last:
            raise AssertionError("the worker asked for the call a third time")
        return False

    def _give_up(self, channel: Channel, is_interrupted: bool) -> None:
        """Close a lane whose answer nobody wants any more; Ctrl-C is for the function, too."""
        if is_interrupted:
            with contextlib.suppress(OSError):  # it is gone, or can't be interrupted
                self.gateway._interrupt(channel.id, 0)
        channel.close()

    def describe(self, module: str, path: str) -> tuple[object, ...]:
        """Import a module in the worker; return (value,) of the attribute that a path leads to.

        () means that it is not a value, but something callable, or something with callables in it.
        """
        found: tuple[object, ...] = self.call(DESCRIBE, (module, path), {})
        return found

    def new_lane(self) -> Channel:
        """Return a channel for answers."""
        channel = self.gateway.newchannel()
        if self.gateway.settings.window_bytes is not None:
            channel.set_window(NO_WINDOW)  # no more is in transit than was asked for
        return channel

    # requests

    def codec_for(self, function: object) -> Codec | None:
        """Return the codec of the gateway, for arguments and results of a user's function."""
        return None if function is DESCRIBE else self.gateway.codec

    def send_modules_of(self, function: object) -> None:
        """Send the module of a function before its first call, if imports of it travel.

        It may read files, and wait for the stream.
        """
        module = self.new_module_of(function)
        forwarding = self.gateway.forwarding
        if module and forwarding is not None:
            self._ahead.add(module)
            forwarding.send_ahead(module, not self.gateway.handshake.is_plain)

    def new_module_of(self, function: object) -> str:
        """Return the module of a function; "" if it was sent, or if no imports travel."""
        if self.gateway.forwarding is None:
            return ""
        while isinstance(function, functools.partial):
            function = function.func
        name = function if isinstance(function, str) else name_of(function) or ""
        module = name.partition(":")[0]
        return "" if module in self._ahead else module

    def request(
        self,
        number: int,
        function: object,
        positional: tuple[object, ...],
        named: dict[str, object],
        codec: Codec | None = None,
    ) -> bytes:
        """Return a request, after sending what the worker needs for it.

        codec: what arguments and result go through, if not None.
        Raises ``DumpError`` for arguments, ValueError for a function that can't be sent,
        ``ExecnetError`` for a codec that the worker can't have.
        """
        if isinstance(function, functools.partial):
            positional, named = function.args + positional, {**function.keywords, **named}
            return self.request(number, function.func, positional, named, codec)
        if isinstance(function, Mapped):
            name, positional, named = self._mapped(function, positional, named)
            function = function.function
        else:
            name = self._name(function)
        factory = self.gateway.factory
        try:
            if codec is not None:
                codec = self.gateway.fitting_codec(codec)
                given = codec.dump((positional, named))
                name, positional, named = CODED, (name, codec.describe(), given), {}
            item: tuple[object, ...] = (number, name, positional)
            if named:
                item = (number, name, positional, named)
            return (dumps_fast if factory.fast else dumps_internal)(item, self.gateway)
        except DumpError as exc:
            text = str(exc)
            for place, word in WORDS.items():
                text = text.replace(place, word, 1)
            error = DumpError(f"{shown(function)} can't be called with that: {text}")
        raise error

    def _mapped(
        self, mapped: Mapped, positional: tuple[object, ...], named: dict[str, object]
    ) -> tuple[str, tuple[object, ...], dict[str, object]]:
        """Return the name and the arguments of a call of a function that is called often."""
        name = mapped.names.get(self) or self._name(mapped.function)
        mapped.names[self] = name
        if mapped.in_chunks:
            return MANY, (name, *positional, mapped.before, mapped.named), named
        return name, mapped.before + positional, mapped.named

    def _name(self, function: object) -> str:
        """Return the worker's name for a function."""
        if isinstance(function, str):
            module, _, path = function.partition(":")
            if not (module and path) and function != DESCRIBE:
                raise ValueError(f"a function's name is 'module:name', not {function!r}")
            return function
        if not callable(function):
            raise TypeError(f"{function!r} can't be called")
        name = name_of(function)
        if name is not None and not (self._absent and name.partition(":")[0] in self._absent):
            return name
        from .sources import plan_of

        plan = plan_of(function, self.gateway.has_old_python())
        if plan.key not in self._sent:
            with self._lock:  # so that no name goes out before what it names
                entries = [entry for entry in plan.entries if entry[0] not in self._sent]
                define = plan.key, plan.hashes, entries
                self.gateway._post(Message.DEFINE, 0, dumps_internal(define))
                self._sent.update([plan.key, *plan.hashes])
        return plan.key

    def send(self, id: int, request: bytes) -> None:
        """Send a request for a lane; a large one as an item of the channel."""
        gateway = self.gateway
        if len(request) <= ITEM_MAX:
            gateway._send(Message.CALL, id, request)
            return
        gateway._send(Message.CALL, id)
        for _, header, payload in gateway.factory.frames_of(id, [request]):
            gateway._send_frame(header, payload)

    # answers

    def error_of(self, answer: object, function: object, is_last: bool) -> Exception | None:
        """Return the error in an answer; None if the request should be made again.

        is_last: it was made again already, and will not be another time.
        The worker may be hostile: it can only choose among the errors that a function may raise.
        """
        if type(answer) is tuple and len(answer) == 3:
            _, module, text = answer
            if type(module) is str and type(text) is str:
                return self._on_missing(module, text, function, is_last)
        if type(answer) is tuple and len(answer) == 5:
            _, type_name, arguments, message, formatted = answer
            if [type(told) for told in (type_name, message, formatted)] == [str, str, str]:
                error = self.gateway.as_error(formatted, type_name, message)
                return _itself(error, arguments) or error
        return LoadError(f"{self.gateway.id} answered a call with {repr(answer)[:80]}")

    def end_of_gateway(self) -> BaseException:
        """Return the error for calls that will never be answered."""
        error = self.gateway.end_error
        return EOFError(f"{self.gateway.id} was ended") if error is None else copy.copy(error)

    def _on_missing(
        self, module: str, text: str, function: object, is_last: bool
    ) -> Exception | None:
        if isinstance(function, Mapped):
            function.names.pop(self, None)
            function = function.function
        while isinstance(function, functools.partial):
            function = function.func
        name = function if isinstance(function, str) else name_of(function) or ""
        asked = name.partition(":")[0]
        if not isinstance(function, str) and module == asked and not is_last:
            self._absent.add(module)
            return None
        error = ModuleNotFoundError(f"{self.gateway.id} can't import {module!r}: {text}")
        error.name = module
        error.__cause__ = RemoteError(text, "ModuleNotFoundError", text)
        return error


def _itself(error: RemoteError, arguments: object) -> Exception | None:
    """Return what was raised, if that is a builtin exception; else None."""
    kind = getattr(builtins, error.type_name or "", None)
    if type(arguments) is not tuple or not isinstance(kind, type):
        return None
    if not issubclass(kind, Exception) or issubclass(kind, (StopIteration, StopAsyncIteration)):
        return None
    try:
        raised = kind(*arguments)
    except Exception:  # it does not take these arguments
        return None
    raised.__cause__ = error
    return raised
