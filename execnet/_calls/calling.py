"""The methods of a gateway for calls: functions of the worker, called as if they were here.

The rest is imported with the first call.  Start at ``Calling.call``.
"""

from __future__ import annotations

from .._inside import Inside
from ..gateway_base import Message, _refusal, dumps_internal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from typing import Any, ParamSpec, TypeVar, overload

    from ..gateway_base import LockLike
    from .module import RemoteModule
    from .near import Calls, GatewayLike
    from .submitted import Submitted

    P = ParamSpec("P")
    T = TypeVar("T")


class Calling(Inside):
    """The part of a gateway that calls functions; any thread may call."""

    _exit_lock: LockLike  # of a gateway
    _calls: Calls | None = None  # made for the first one
    _submitted: Submitted | None = None

    if TYPE_CHECKING:

        @overload
        def call(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
        @overload
        def call(self, func: str, /, *args: object, **kwargs: object) -> Any: ...
        def call(self, func: object, /, *args: object, **kwargs: object) -> object: ...

    else:

        def call(self, func, /, *args, **kwargs):
            """Call a function in the worker; return its result, raise what it raises.

            func: a function or a class, which goes by its name if the worker can import it, else as
            source with the names of its module that it uses; or a string, "module:name", for
            something that only the worker can import.  args, kwargs, and the result: items, as for
            ``Channel.send``, or values of the codec, if the group has one.  Calls from several
            threads run at once.
            Raises ValueError for a function that can't be sent, ``DumpError`` for arguments that
            can't, ``WorkerDied`` if the worker dies meanwhile, ``DeadlockError`` in a callback of
            this gateway.  Builtin exceptions of the function are raised as themselves; the
            ``RemoteError`` with the traceback is their cause.  All others are raised as a
            ``RemoteError``.  A KeyboardInterrupt that comes here is raised in the function as well.
            """
            return self.get_calls().call(func, args, kwargs)

    if TYPE_CHECKING:

        @overload
        def submit(
            self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
        ) -> Future[T]: ...
        @overload
        def submit(self, func: str, /, *args: object, **kwargs: object) -> Future[Any]: ...
        def submit(self, func: object, /, *args: object, **kwargs: object) -> object: ...

    else:

        def submit(self, func, /, *args, **kwargs):
            """Submit a call of a function to the worker; return a ``concurrent.futures.Future``.

            Arguments as for ``call``; whatever that would raise, the future holds.  Calls submitted
            to one gateway run there one after the other.  Callbacks of the future run in a thread
            that no gateway needs; ``result()`` in a callback of this gateway raises
            ``DeadlockError``.
            Raises ValueError, ``DumpError`` and, if the worker is gone, OSError.
            """
            if self._submitted is None:
                from .submitted import Submitted

                calls = self.get_calls()
                with self._exit_lock:
                    self._submitted = self._submitted or Submitted(calls)
            return self._submitted.submit(func, args, kwargs)

    def module(self, name: str) -> RemoteModule:
        """Import a module in the worker; return an object with its attributes.

        Functions run there, as with ``call``; values are copies.  Raises ModuleNotFoundError if
        the worker can't find it, and whatever its import raises, as ``call`` does.
        """
        from .module import RemoteModule

        calls = self.get_calls()
        calls.describe(name, "")
        return RemoteModule(calls, name)

    def _interrupt(self: GatewayLike, channel_id: int, number: int | None = None) -> None:
        """Interrupt the code of a channel, or a call of a lane by its number; never waits."""
        if "interrupts" not in self.handshake.hello.get("features", "").split():
            raise OSError(f"{self.id} can't be interrupted: its worker does not support that")
        if not self.hasreceiver():
            raise _refusal(self, f"cannot interrupt code of {self!r}")
        self._post(Message.INTERRUPT, channel_id, b"" if number is None else dumps_internal(number))

    def get_calls(self) -> Calls:
        """Return what makes calls; ``ExecnetError`` if the worker does not support them."""
        if self._calls is None:
            from .near import Calls

            with self._exit_lock:
                self._calls = self._calls or Calls(self)  # type: ignore[arg-type]
        return self._calls
