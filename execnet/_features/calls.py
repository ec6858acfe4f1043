"""Calls: functions that run in a worker; their results or exceptions go back.

A call is a frame, ``Message.CALL``, with the id of the channel that the answer goes to.  Calls for
one id, a lane, run one after the other; those of several lanes run at once, as far as the execution
pool allows.  Start at ``Calls.on_call``.

A request is (number, function, positional[, keyword arguments]), where the function is
"module:name" or the key of a function sent as source.  An answer is (number, result), or (number,
name of the missing module, text), or (number, name of the exception's type, its arguments or
None, its message, the text of the traceback), or ([number, ...],) for calls that are given back.
"""

from __future__ import annotations

import os
import sys

from ..gateway_base import (
    HAS_DAEMON_THREADS,
    PY2,
    DumpError,
    Message,
    _decoded,
    _end_fork,
    _import,
    _pack_int_frame,
    _told,
    dumps_internal,
    get_ident,
    geterrortext,
    load_item,
    load_part,
    loads_internal,
    new_lock,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any

    from ..gateway_base import Channel, ExecModel, WorkerGateway
    from .codecs import Codec
    from .defined import Defined

    Request = bytes | Channel  # one that does not fit in a frame comes as an item
    Perform = Callable[..., object]
if not TYPE_CHECKING:
    deque = __import__("_collections").deque  # without the rest of ``collections``

_BUILTINS = "exceptions" if PY2 else "builtins"
_NEVER_THEMSELVES = "StopIteration", "StopAsyncIteration"


class Calls(object):
    """The calls of one worker.  ``_lock`` guards the lanes."""

    def __init__(self, gateway: WorkerGateway) -> None:
        self._gateway = gateway
        self._pool = gateway._execpool
        self._factory = gateway._channelfactory
        self._lanes: dict[int, deque[Request]] = {}  # what waits, of lanes that are being served
        self._current: dict[int, tuple[int, int]] = {}  # number and thread of a lane's call
        self._interrupted: set[tuple[int, int]] = set()  # pairs of lane and number
        self._large: dict[int, Channel] = {}  # channels for requests that do not fit in a frame
        self._lock = new_lock()
        self._defined: Defined = load_part("_features.defined").Defined()
        self._codecs: dict[bytes, Codec] = {}  # by their descriptions
        self._own: dict[str, Perform] = {"describe": describe, "many": self._many}
        self._own["coded"] = self._coded
        if self._pool.execmodel.has_main_thread and HAS_DAEMON_THREADS and not PY2:
            self._pool.start = SpareThreads(self._pool.execmodel, self._serve).start

    # in the receiver thread

    def on_call(self, id: int, data: bytes) -> None:
        """Have a request served; b"" for one that arrives as an item of the channel."""
        request: Request = data
        if not data:
            self._large = {n: one for n, one in self._large.items() if not one.isclosed()}
            request = self._large[id] = self._factory.new(id)
        with self._lock:
            if id in self._lanes:
                self._lanes[id].append(request)
                return
            self._lanes[id] = deque([request])
        direct = self._factory.direct
        if direct is not None and len(self._lanes) == 1 and not direct.waiting:
            direct.want()  # the thread that serves it may itself read the next request
        self._start(id)

    def _start(self, id: int) -> None:
        try:
            self._pool.spawn(self._serve, id)
        except Exception as exc:  # no more threads can be started, or the worker is about to end
            with self._lock:
                requests = self._lanes.pop(id)
            for request in requests:
                number = self._load(request)[0]
                self._send(id, number, self._error(number, exc))

    def on_define(self, data: bytes) -> None:
        """Take the parts of functions that are sent as source."""
        self._defined.add(*loads_internal(data, None, (True, True)))

    # in the thread that serves a lane

    def _serve(self, id: int) -> None:
        request = self._next(id)
        if request is None:  # it was given back
            self._end_lane(id)
        while request is not None:
            number, answer = self._answer(id, request)
            request = self._go_on(id, number, answer)

    def _next(self, id: int) -> Request | None:
        with self._lock:
            requests = self._lanes[id]
            return requests.popleft() if requests else None

    def _go_on(self, id: int, number: int, answer: object) -> Request | None:
        """Send an answer and return the next request of the lane; None if it is no longer served.

        Whoever gets the answer may rely on this thread being free, above all if it is the main one.
        So it is released first, or else it holds the stream and handles the next request itself.
        """
        request = self._next(id)
        if request is not None:
            self._send(id, number, answer)  # before the next begins, so that one knows which did
            return request
        direct = self._factory.direct
        if direct is not None and not direct.offered:
            if not direct.waiting:
                direct.decline()
        elif direct is not None and len(self._lanes) == 1:
            sent: list[bool] = []

            def send() -> None:
                sent.append(True)
                self._send(id, number, answer)

            recall = _pack_int_frame(Message.INTERRUPT, id, 6, 70, -1, 81)  # nothing waits then
            give_up = self._pool.release_primary
            requests = direct.read_frames(Message.CALL, id, send, give_up, recall)
            if len(requests) > 1:
                with self._lock:
                    self._lanes[id].extendleft(reversed(requests[1:]))
            if requests:
                return requests[0]
            self._factory.take_back()
            answer = None if sent else answer
        self._end_lane(id, number, answer)
        return None

    def _end_lane(self, id: int, number: int = 0, answer: object = None) -> None:
        self._pool.release_primary()
        with self._lock:
            again = bool(self._lanes[id])
            if not again:
                del self._lanes[id]
                self._interrupted = {one for one in self._interrupted if one[0] != id}
        if answer is not None:
            self._send(id, number, answer)
        if again:  # it arrived just now
            self._start(id)

    def _load(self, request: Request) -> Any:
        if isinstance(request, bytes):
            return load_item(request, self._factory, self._gateway._strconfig)
        return request.receive()

    def interrupt(self, id: int, number: int) -> None:
        """Interrupt a call of a lane, or keep it from beginning; runs in the receiver thread.

        number: of the call; -1 has all that wait given back instead.
        """
        if number < 0:
            self._give_back(id)
            return
        main_ident = self._gateway.process.main_ident
        interrupts, running = load_part("_features.interrupts"), load_part("_features.running")
        running.let_import({self._current.get(id, (0, 0))[1]})
        with self._lock:
            current = self._current.get(id, (0, 0))
            if id not in self._lanes or number < current[0] or (id, number) in self._interrupted:
                return  # it has ended, or was interrupted
            self._interrupted.add((id, number))
            if current[0] == number and current[1] != main_ident:
                running.interrupt_others({current[1]}, main_ident)
        if current == (number, main_ident):
            interrupts.interrupt_main(self._gateway, lambda: self._current.get(id) == current)

    def _give_back(self, id: int) -> None:
        """Answer the requests that wait, all at once, with nothing but their numbers."""
        with self._lock:
            requests = list(self._lanes.get(id, ()))
            waiting = [request for request in requests if type(request) is bytes]
            if waiting:  # of large ones not all may have arrived
                self._lanes[id] = deque([one for one in requests if type(one) is not bytes])
        if waiting:
            numbers = [self._load(request)[0] for request in waiting]
            self._send(id, numbers[0], (numbers,))

    def _begin(self, id: int, number: int) -> None:
        with self._lock:
            self._current[id] = number, get_ident()
            if (id, number) in self._interrupted:
                raise KeyboardInterrupt

    def _end(self, id: int, number: int) -> None:
        """Note that a call has ended; no interrupt comes after this.  May be called again."""
        with self._lock:
            self._current.pop(id, None)
            if (id, number) in self._interrupted:
                self._interrupted.discard((id, number))
                load_part("_features.interrupts").take_back()

    def _answer(self, id: int, request: Request) -> tuple[int, object]:
        """Execute a request; return its number and the answer."""
        process, number, pid = self._gateway.process, 0, os.getpid()
        in_main_thread = get_ident() == process.main_ident
        answer: object
        try:
            try:
                loaded = self._load(request)
                number, function, positional = loaded[:3]
                self._begin(id, number)
                process.is_interruptible |= in_main_thread
                function = self._find(function)
                if len(loaded) > 3:
                    named = loaded[3]
                    if PY2:
                        named = {str(name): named[name] for name in named}
                    answer = number, function(*positional, **named)
                else:
                    answer = number, function(*positional)
                if os.getpid() != pid:
                    _end_fork(None)
            finally:
                process.is_interruptible &= not in_main_thread
                self._end(id, number)
        except Missing as exc:
            answer = number, exc.module, exc.text
        except:  # noqa: E722 - in Python 2 anything can be raised
            process.is_interruptible &= not in_main_thread
            self._end(id, number)  # the first time may have been interrupted
            error: Any = sys.exc_info()
            if os.getpid() != pid:
                _end_fork(error[1])
            answer = self._error(number, error)
        return number, answer

    def _find(self, name: str) -> Callable[..., object]:
        module, colon, path = name.partition(":")
        if not colon:
            return self._defined.function(name)
        if not module:
            return self._own[path]
        found: Callable[..., object] = attribute(import_module(module), path)
        return found

    def _many(
        self, name: str, columns: Any, before: tuple[object, ...], named: dict[str, object]
    ) -> list[object]:
        """Call a function with the first item of each column, then with the second, and so on.

        A column is a tuple of items, or the bounds of a range, as a list.
        """
        function = self._find(name)
        columns = [range(*column) if type(column) is list else column for column in columns]
        if before or named:
            if PY2:
                named = {str(key): named[key] for key in named}
            function = _import("functools").partial(function, *before, **named)
        return list(map(function, *columns))

    def _coded(self, name: str, description: object, given: object) -> object:
        """Call a function with arguments that a codec made plain; its result is made so, too."""
        key = dumps_internal(description)
        codec = self._codecs.get(key)
        if codec is None:
            codec = self._codecs[key] = load_part("_features.codecs").described(description)
        positional, named = codec.load(given)
        if PY2:
            named = {str(name): named[name] for name in named}
        return codec.dump(self._find(name)(*positional, **named))

    def _error(self, number: int, error: object) -> tuple[object, ...]:
        """Return the answer for what was raised: an exception, or (type, value, traceback)."""
        exc = error
        if type(error) is tuple:
            exc, tb = error[1:]
            while tb.tb_next is not None and tb.tb_frame.f_globals is globals():
                tb = tb.tb_next  # down to the code that was called
            error = error[0], exc, tb
        told = _told(geterrortext(error), exc)
        type_name, message = told.details or ("", "")
        return number, type_name, _arguments(exc), message, _decoded("".join((told,)))

    def _send(self, id: int, number: int, answer: object) -> None:
        try:
            self._factory.send_item(id, answer)
        except Exception as exc:  # the result is not an item, or there is no memory or no stream
            error: Exception = exc
            if isinstance(exc, DumpError):
                error = DumpError(str(exc).replace("item[1]", "result", 1))
            self._factory.send_item(id, self._error(number, error))


class SpareThreads(object):
    """Starts threads for a pool; one that has served calls is kept for the next ones a while.

    While the main thread is busy, each call would have a thread started for it, which takes several
    times as long as the rest of a small call.
    """

    KEEP_S = 1.0

    def __init__(self, execmodel: ExecModel, serve: Perform) -> None:
        self._execmodel = execmodel
        self._serve = serve
        self._idle: list[list[Any]] = []  # the lock that a thread waits for, and what it gets

    def start(self, func: Perform, args: Sequence[Any] = (), name: str = "") -> None:
        """Have ``func(*args)`` called in a thread; the argument is a ``Reply``."""
        if args[0].task[0] != self._serve:  # it may leave things behind in its thread
            self._execmodel.start(func, args, name)
            return
        try:
            given = self._idle.pop()
        except IndexError:
            self._execmodel.start(self._run, (func, args), name)
        else:
            given[1] = func, args
            given[0].release()

    def _run(self, func: Perform, args: Sequence[object]) -> None:
        task: tuple[Perform, Sequence[object]] | None = func, args
        while task is not None:
            task[0](*task[1])
            task = self._next_task()

    def _next_task(self) -> tuple[Perform, Sequence[object]] | None:
        """Wait for what the thread is to do next; None if there was nothing for a while."""
        lock = new_lock()
        lock.acquire()
        given: list[Any] = [lock, None]
        self._idle.append(given)
        if not lock.acquire(True, self.KEEP_S):
            try:
                self._idle.remove(given)
            except ValueError:  # it was chosen just now
                lock.acquire()
        task: tuple[Perform, Sequence[object]] | None = given[1]
        return task


def _arguments(exc: object) -> object:
    """Return the arguments of an exception that goes back as itself; None for all others."""
    kind = type(exc)
    try:
        if (
            kind.__module__ == _BUILTINS
            and issubclass(kind, Exception)
            and kind.__name__ not in _NEVER_THEMSELVES
        ):
            arguments = exc.__reduce__()[1]  # OSError has more of them than its ``args``
            dumps_internal(arguments, False)
            return arguments
    except Exception:  # an argument that can't be sent
        pass
    return None


# ---------------------------------------------------------------- functions by name


class Missing(Exception):
    """A module is missing, or not for this Python; the function may come as source."""

    def __init__(self, module: str, text: str) -> None:
        super(Missing, self).__init__(text)
        self.module = module
        self.text = text


def import_module(name: str) -> ModuleType:
    """Return a module; raises ``Missing`` if it, or a package that it is in, is not found."""
    name = str(name)
    if PY2 and name == "builtins":
        name = "__builtin__"
    module = sys.modules.get(name)
    if module is not None and _is_ready(module):
        return module
    packages = [name.rsplit(".", count)[0] for count in range(name.count(".") + 1)]
    packages = [package for package in packages if package not in sys.modules]
    try:
        __import__(name)
    except ImportError as exc:
        if not _is_about(exc, name):
            raise
        raise Missing(name, "%s: %s" % (type(exc).__name__, exc))
    except SyntaxError as exc:
        for package in packages:  # Python 2 leaves an empty one, which the next import would find
            sys.modules.pop(package, None)
        raise Missing(name, "%s: %s" % (type(exc).__name__, exc))
    return sys.modules[name]


def _is_ready(module: ModuleType) -> bool:
    """Whether no thread is still importing it."""
    spec = getattr(module, "__spec__", None)
    return not PY2 and spec is not None and not getattr(spec, "_initializing", False)


def _is_about(exc: ImportError, name: str) -> bool:
    """Whether an ImportError says that this module, or a package that it is in, is missing."""
    if not PY2:
        missing = getattr(exc, "name", None) if type(exc) is not ImportError else None
        return missing is not None and (name + ".").startswith(missing + ".")
    words = str(exc).split("No module named ")
    return len(words) == 2 and not words[0] and words[1] in [name] + name.split(".")


def attribute(found: object, path: str) -> Any:
    """Return the object that a dotted path leads to."""
    for part in path.split("."):
        found = getattr(found, str(part))
    return found


def describe(module: str, path: str) -> tuple[object, ...]:
    """Return (value,) for what a path leads to in a module, () if that is not a value."""
    found = import_module(module)
    if path:
        try:
            found = attribute(found, path)
            dumps_internal(found, False)
            return (found,)
        except DumpError:
            pass
    return ()


# ---------------------------------------------------------------- the frames


def _of(gateway: WorkerGateway) -> Calls:
    if gateway.calls is None:
        gateway.calls = Calls(gateway)
    calls: Calls = gateway.calls
    return calls


def on_call(message: Message, gateway: WorkerGateway) -> None:
    """Act on a CALL; runs in the receiver thread."""
    Message._types[Message.CALL] = "CALL", on_call  # from now on without looking for this part
    gateway._expect_code()
    _of(gateway).on_call(message.channelid, message.data)


def on_define(message: Message, gateway: WorkerGateway) -> None:
    """Act on a DEFINE; runs in the receiver thread."""
    _of(gateway).on_define(message.data)
