"""The coordinator's end of a gateway: the interface to one worker.

``Gateway.remote_exec`` sends code, and returns the channel to it.  ``Gateway._explain_end`` decides
how a worker ended, its exit status included.  Workers are started in ``gateway_bootstrap``, groups
of them in ``multi``.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterable, Mapping

from ._calls.calling import Calling
from ._clock import monotonic
from ._endpoint import endpoint_of
from ._ends import fork
from ._ends.admission import Admission, BoundedSizes
from ._ends.death import describe_exit, place_of, shown, worker_died
from ._ends.handshake import Handshake
from ._ends.last_words import LastWords, show
from ._errors import WorkerDied
from ._inside import Inside
from ._log import DEBUG, INFO, WARNING, note
from ._ship.source import _find_non_builtin_globals as _find_non_builtin_globals
from ._ship.source import _source_of_function as _source_of_function
from ._ship.source import compiled, source_to_send
from ._specs import Settings
from .gateway_base import (
    Channel,
    DumpError,
    ExecnetError,
    FrameWriter,
    GatewayState,
    LoadError,
    Message,
    ProtocolError,
    _Flag,
    _refusal,
    dumps_internal,
    new_lock,
    printable,
    threads_are_patched,
)

TYPE_CHECKING = False  # ``typing`` itself costs more than all other imports here
if TYPE_CHECKING:
    from typing import Any, Protocol

    from ._ends.death import Source
    from ._features.codecs import Codec
    from ._features.pulse import Pulse
    from ._imports.library import Library
    from ._imports.near import Forwarding
    from ._reports import Reporter
    from .xspec import XSpec

    class GroupLike(Protocol):
        """What a gateway needs from its group."""

        _reporter: Reporter | None

        def _unregister(self, gateway: Gateway) -> None: ...
        def _on_loss(self, gateway: Gateway) -> None: ...
        def _get_library(self) -> Library: ...
        def __contains__(self, gateway: object) -> bool: ...
        def __getitem__(self, id: str) -> Gateway: ...


TERMINATE_S = 10.0  # how long a worker gets at the end of a with statement
_SERVER = "execnet.script.socketserver"  # it is told which key its clients have
# Names without an underscore that are for other modules of ours; completion need not offer them.
_INTERNAL = frozenset(["announce_codec", "exitcode", "fitting_codec", "handshake", "is_hurried"])
_INTERNAL |= {"ask_stacks", "await_receiver", "execute_source", "get_calls", "get_forwarding"}
_INTERNAL |= {"forwarding", "noise", "post_first_line", "settings", "tell_state"}
_INTERNAL |= {name for name in vars(Inside) if not name.startswith("_")}
EXIT_STATUS_S = 1.0  # how long a process may take to end after its stream


class Gateway(Calling):
    """A worker, seen from the coordinator.

    io: a stream to a worker that has been told to serve.  spec: what it was made from.
    handshake: leads to its hello; without one, frames come at once.  settings: the parsed values of
    the spec, if they exist already.  Any thread may call any method.
    """

    _group: GroupLike | None = None
    codec: Codec | None = None  # of the channels that ``remote_exec`` makes
    exitcode: int | None = None
    forwarding: Forwarding | None = None  # modules that the worker imports from here
    _silence = ""  # why it was given up
    _is_explained = False
    _has_pulse = False

    _bound_sizes = BoundedSizes

    def __init__(
        self,
        io: Any,
        spec: XSpec,
        handshake: Handshake | None = None,
        settings: Settings | None = None,
    ) -> None:
        super().__init__(endpoint_of(io), spec.id or "gw?", _startcount=1)
        self.spec = spec
        self.settings = settings or Settings(spec)
        self._cache_rinfo: RInfo | None = None
        self.handshake = handshake or Handshake(self.execmodel)
        self._last_words = LastWords(self.handshake.marker, self._io.note_status)
        self._shares_python = False  # so that the worker can be sent compiled code
        self._last_asked = ""  # what the worker was last asked to execute
        self._exit_lock = new_lock()
        self._admits = Admission(self)
        if not self.settings.has_source:
            from ._ends.checked import load_checked

            self._channelfactory.load_item = load_checked
        if self.settings.memory_bytes is not None:
            from ._ends.limits import error_maker

            self.as_error = error_maker(self.settings)
        self._channelfactory.max_item = self.settings.max_item_bytes
        self._writer.refusal = self._refusal
        self._initreceive()
        fork.register(self)

    @property
    def remoteaddress(self) -> str | None:
        """The address of the host for a gateway over a network; else None."""
        return self._io.remoteaddress

    @property
    def noise(self) -> bytes:
        """What arrived instead of the worker's answer, or before it."""
        return self.handshake.noise

    def remote_exec(self, source: Source, **kwargs: object) -> Channel:
        """Execute code in the worker; return the channel that is its ``channel`` there.

        source: a string of statements; a function whose first parameter is the channel, and that
        uses nothing of its module; or a module, whose file is read afresh.
        kwargs: passed to the function, serialized.
        Raises ValueError for a function that can't stand alone, TypeError for keyword arguments
        without a function, ``DumpError`` for one that can't be serialized, OSError if the worker
        is gone.  Errors of the code arrive on the channel as ``RemoteError``.
        """
        text, file_name, call_name = source_to_send(source, self.has_old_python())
        if kwargs and call_name is None:
            raise TypeError("keyword arguments need a function to be passed to")
        if isinstance(source, types.ModuleType) and source.__name__ == _SERVER:
            from ._transports.keys import given_to_server

            text = given_to_server() + text
        return self.execute_source(source, text, file_name, call_name, kwargs)

    def execute_source(
        self,
        source: Source,
        text: str,
        file_name: str | None,
        call_name: str | None,
        kwargs: dict[str, object] | None = None,
        channel: Channel | None = None,
    ) -> Channel:
        """Execute source text in the worker, as above; ``channel``: instead of a new one."""
        channel = channel or self.newchannel()
        if self.codec is not None:
            channel.codec = self.codec
        self._last_asked = asked = shown(source)
        if "logging" in sys.modules:
            note("gateway", DEBUG, lambda: f"{self.id} executes {asked}", self.id)
        channel._whose = f"error of {self.id} in {asked}: "
        code = compiled(source, text, file_name) if self._shares_python else None
        task = (text, file_name, call_name, kwargs or {}) + ((code,) if code else ())
        try:
            data = dumps_internal(task)
        except DumpError as exc:
            raise DumpError(str(exc).replace("item[3]", "kwargs", 1)) from None
        self._send(Message.CHANNEL_EXEC, channel.id, data)
        return channel

    def announce_codec(self, channel: Channel, codec: Codec | None) -> Codec | None:
        """Describe a channel's codec to the worker; return the one to use on this side.

        Raises ``ExecnetError`` if the worker does not support codecs.
        """
        if codec is not None:
            codec = self.fitting_codec(codec)
        description = None if codec is None else codec.describe()
        self._send(Message.CODEC, channel.id, dumps_internal(description))
        return codec

    def fitting_codec(self, codec: Codec) -> Codec:
        """Return a codec as the worker's Python can have it.

        Raises ``ExecnetError`` if the worker does not support codecs.
        """
        hello = self.handshake.hello
        if "codecs" not in hello.get("features", "").split():
            raise ExecnetError(f"{self.id} has a worker that does not support codecs")
        return codec.for_python(hello["version_info"])

    def forward_imports(
        self, names: Iterable[str], allow: Iterable[str] = (), deny: Iterable[str] = ()
    ) -> None:
        """Let code in the worker import modules of this program, which are sent as source.

        names: modules and packages, with everything below them; in the worker they take precedence
        over installed ones.  allow: names, or patterns with ``*``, of modules to send if the worker
        lacks them.  deny: what never leaves this machine, even if it is below one of the others.
        Further calls add to the earlier ones.
        Raises ValueError for a module that does not exist here or is in the standard library,
        TypeError for a string instead of a list, OSError if the worker is gone.
        """
        self.get_forwarding().allow(names, allow, deny)

    def reload_imports(self) -> list[str]:
        """Read forwarded modules again; return the names of those that changed for the worker.

        If any changed, the worker's next imports execute all forwarded modules again.  Raises
        OSError if the worker is gone.
        """
        forwarding = self.get_forwarding()
        forwarding.library.forget()
        return forwarding.reload()

    def get_forwarding(self, library: Library | None = None) -> Forwarding:
        """Return what forwards imports, made for the first; library: the group's is the default."""
        if self.forwarding is None:
            from ._imports.near import forwarding_of

            if library is None and self._group is not None:
                library = self._group._get_library()
            self.forwarding = forwarding_of(self, library)
        return self.forwarding

    def _on_import(self, message: Message) -> None:
        if self.forwarding is None:
            raise ProtocolError("a worker asked for a module, and none is forwarded")
        self.forwarding.on_request(message)

    def remote_status(self, timeout: float | None = None) -> RemoteStatus:
        """Ask the worker for its status; answered even while its main thread is busy.

        timeout: seconds to wait, None for as long as the worker lives.  Returns an object with
        ``numchannels``, ``numexecuting``, ``execmodel`` and others; a service also has ``tasks``.
        Raises ``TimeoutError`` if no answer arrived, OSError or ``WorkerDied`` if the worker is
        gone, ``DeadlockError`` in a callback of this gateway.
        """
        channel = self.newchannel_as((True, False))  # names are text
        self._send(Message.STATUS, channel.id)
        status = channel.receive(timeout)
        if not isinstance(status, dict):
            raise LoadError(f"{self.id} answered {repr(status)[:80]} when asked for its status")
        return RemoteStatus(status)

    def _rinfo(self, update: bool = False, timeout: float | None = None) -> RInfo:
        """Return what is known about the worker's interpreter; ``update`` asks again.

        timeout: as for ``remote_status``, which does the asking.
        """
        if self._cache_rinfo is None and self.handshake.hello:
            self._cache_rinfo = RInfo({**self._io.facts, **self.handshake.hello})
        if update or self._cache_rinfo is None:
            status = self.remote_status(timeout).__dict__
            self._cache_rinfo = RInfo({**self._io.facts, **status})
        return self._cache_rinfo

    def reconfigure(self, py2str_as_py3str: bool = True, py3str_as_py2str: bool = False) -> None:
        """Set how strings are converted between Python 2 and 3, for channels made from now on.

        py2str_as_py3str: Python 2's str is read as text (latin-1) by Python 3, else as bytes.
        py3str_as_py2str: Python 3's str is read as str (UTF-8) by Python 2, else as unicode.
        """
        self._strconfig = (py2str_as_py3str, py3str_as_py2str)
        self._send(Message.RECONFIGURE, data=dumps_internal(self._strconfig))

    def remote_init_threads(self, num: int | None = None) -> None:
        """Do nothing, and say so: workers start threads as they need them."""
        print("WARNING: remote_init_threads() does nothing, threads start as they are needed")

    def exit(self) -> None:
        """Ask the worker to end; does not wait for it.  A second call does nothing.

        Its code gets time to finish; ``Group.terminate`` waits for that, and ends what is left.
        """
        self._exit()

    def _exit(self, is_hurried: bool = False) -> None:
        """Do that; is_hurried: interrupt the worker's code instead of letting it finish."""
        with self._exit_lock:
            group, self._group = self._group, None
            first = self._state in (GatewayState.STARTING, GatewayState.LIVE)
            if first:
                self._go("exit")
        if group is not None:
            group._unregister(self)
        if first:
            self._trace("exit: asking the worker to end")
            self._post(Message.GATEWAY_TERMINATE, 0, b"!" if is_hurried else b"")
            self._writer.close_soon()
            self._channelfactory.take_back()

    def dump_stacks(self, timeout: float | None = 10.0) -> str:
        """Return the Python stacks of all threads of the worker, as text.

        The worker's receiver thread answers, even while its main thread is busy, but not while C
        code holds the interpreter.  timeout: seconds to wait, None for ever.
        Raises ``TimeoutError`` if no answer arrived, OSError if the worker is gone.
        """
        channel = self.ask_stacks()
        stacks: str = channel.receive(timeout)
        return stacks

    def ask_stacks(self) -> Channel:
        """Ask for the stacks; return the channel that gets them."""
        channel = self.newchannel_as((True, False))
        self._send(Message.STACKS, channel.id)
        return channel

    def describe(self) -> str:
        """Describe the worker in one line: its spec, host, process and Python."""
        info = vars(self._cache_rinfo or RInfo(self.handshake.hello))
        version = ".".join(map(str, info.get("version_info", ())[:3]))
        words = [
            f"{self.id}: {self.spec.shown()}",
            f"on {self.remoteaddress}" if self.remoteaddress else "on this machine",
            f"pid {info.get('pid', '?')}",
            f"{info.get('implementation', 'Python')} {version}",
            "live" if self.hasreceiver() else "ended",
        ]
        return printable(", ".join(words))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"<Gateway {self.describe()}>")  # in IPython and notebooks

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name not in _INTERNAL]

    def __enter__(self) -> Gateway:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """End the worker and wait until it is gone; after 10 s it is killed.

        If the block raised an error, its code is interrupted at once.
        """
        try:
            self._exit(is_hurried=error is not None)
            self._io.poll_until(monotonic() + TERMINATE_S)
        finally:
            self._io.kill()
            self._io.wait()
            self.await_receiver()

    def await_receiver(self) -> None:
        """Wait until nothing reads the stream any more: for the group, of a worker that ended."""
        self.join()

    def _disown(self) -> None:
        """In a forked process: the worker belongs to the parent, whatever it was about to do.

        Locks that a thread of the parent held stay taken here, so we make new ones.
        """
        reason = f"it belongs to process {os.getppid()}, of which this one is a fork"
        self._writer = FrameWriter(self._io, self.id)
        self._writer.fail(reason)
        self._error = ForkError(f"{self.id} can't be used: {reason}")
        self._state = GatewayState.LOST
        self._group = None
        self._exit_lock = new_lock()
        self._receiver_done = _Flag(self.execmodel)
        self._receiver_done.set()
        fork.disown_channels(self._channelfactory)
        self._io.disown()

    # the receiver thread

    def post_first_line(self, line: bytes) -> None:
        """Send the line that turns an interpreter into a worker; RuntimeError if that fails."""
        self._writer.post(line, b"")
        if self._writer.no_thread:
            text = f"no thread could be started for its first line: {self._writer.no_thread}"
            raise RuntimeError(text)

    def _on_hello(self, hello: dict[str, object]) -> None:
        if "error" not in hello:
            with self._exit_lock:
                super()._on_hello(hello)
            python = hello.get("implementation"), hello.get("version_info")
            alike = python == (sys.implementation.name, tuple(sys.version_info[:5]))
            rest = self.handshake.take_rest(alike, self.endpoint.is_near)
            if rest is not None:
                self._post(Message.SOURCE, 0, rest)
            waits = self._io.on_hello(self, lambda more: self.handshake.end({**hello, **more}))
            try:
                self._configure_peer(hello)
            except (RuntimeError, ImportError, OSError) as exc:
                hello, waits = {"error": f"it could not be set up: {exc}"}, False
            is_ours = self.spec.popen and hello.get("executable") == sys.executable
            self._shares_python = bool(alike and is_ours and not self.spec.via)
            if waits:
                return
        self.handshake.end(hello)

    def _configure_peer(self, hello: dict[str, Any]) -> None:
        """Tell the worker the settings that concern both ends."""
        settings = self.settings
        if settings.compresses:
            from ._ends import deflating

            deflating.begin(self, hello)
        if settings.window_bytes is not None:
            data = dumps_internal(settings.window_bytes)
            self._post(Message.WINDOW, 0, data)
            Message(Message.WINDOW, 0, data).received(self)
        if settings.heartbeat_s:
            from ._features.pulse import Pulse

            times_s = settings.heartbeat_s, settings.dead_after_s
            self._post(Message.PING, 0, dumps_internal(times_s))
            pulse = Pulse(self, *times_s)
            # A thread must not touch what greenlets use, nor wait like them.
            if not self.execmodel.has_main_thread or threads_are_patched():
                self.execmodel.start(pulse.run, (), "execnet-pulse")
                return
            self._watch_pulse(pulse)

    def _watch_pulse(self, pulse: Pulse) -> None:
        from ._ends import heartbeat

        heartbeat.watch(pulse)
        self._has_pulse = True

    def _refusal(self, text: str) -> Exception:
        if self._state not in (GatewayState.CLOSING, GatewayState.CLOSED):
            if self._get_ident() != self._receiver_ident:
                # The stream took no more, so its end and the reason will be known soon.
                self._receiver_done.wait(2 * EXIT_STATUS_S)
            if isinstance(self._error, WorkerDied):
                return _refusal(self, text)
        return OSError(text)

    def _on_silence(self, reason: str) -> None:
        self._silence = reason
        self._io.kill()

    def tell_state(self, state: str) -> None:
        """Tell the group what became of the connection: "lost" or "resumed"."""
        note("gateway", WARNING, lambda: f"the connection of {self.id} was {state}", self.id)
        reporter = None if self._group is None else self._group._reporter
        if reporter is not None:
            reporter.tell(self, state)

    def _receive_until_end(self, data: bytes = b"") -> None:
        try:
            if self.handshake.marker:
                data = self._skip_noise()
            try:
                super()._receive_until_end(data)
            except ProtocolError:
                if not self._last_words.read_trace(self._read_some):
                    raise
                raise EOFError("the stream ended") from None
        except EOFError as exc:
            raise self._explained(exc) from None

    def _on_cut_frame(self, data: bytes) -> None:
        self._last_words.keep(data)

    def _on_goodbye(self, data: bytes) -> None:
        self._last_words.take_goodbye(data)

    def _skip_noise(self) -> bytes:
        """Read up to the worker's marker; return what came after it."""
        while True:
            after = self.handshake.feed(self._read_some(65536))
            if after is not None:
                return after
            reply = self.handshake.take_reply()
            if reply:
                self._writer.post(reply, b"")

    def _explained(self, error: Any) -> Any:
        """Return the error that tells how the worker ended; nobody is to see another before."""
        self._is_explained = True
        if self.settings.kills_group and self._state != GatewayState.CLOSING:
            self._io.kill_group()  # otherwise the worker does it in its own time
        if self._last_words.is_certain:
            self._io.end()
        is_end = isinstance(error, EOFError) and not isinstance(error, ProtocolError)
        return self._explain_end(error) if is_end else error

    def _on_stream_end(self) -> None:
        if not self._is_explained:
            self._error = self._explained(self._error)
        super()._on_stream_end()
        if self.handshake.hello:
            is_orderly = str(self._error) == f"{self.id} was ended"
            note("gateway", INFO if is_orderly else WARNING, lambda: self._error, self.id)
        self.handshake.end()
        group = self._group
        if group is not None and self._state == GatewayState.LOST:
            group._on_loss(self)

    def _explain_end(self, error: EOFError) -> EOFError:
        if self._state == GatewayState.CLOSING:
            return EOFError(f"{self.id} was ended")
        self.exitcode = self._io.poll_until(monotonic() + EXIT_STATUS_S)
        words = self._last_words
        if words.status is not None and not self._silence:
            self.exitcode = words.status  # not that of ssh
        trace = words.trace() if self.exitcode is None or self.exitcode < 0 else ""
        if trace:
            show(trace)
        how = f"died, {describe_exit(self.exitcode)}: {error}"
        if self._silence or (self._io.given_up and self.exitcode is None):
            how = f"was given up: {self._silence or self._io.given_up}"
        elif words.reason:
            how = f"gave up, {describe_exit(self.exitcode)}: {words.reason}"
        how = place_of(self._io.facts) + how
        why = self._ask_why()
        if why:
            how += f"; {why}"
        stderr = "\n".join(filter(None, [self._io.stderr_tail(), trace.strip()]))
        died = worker_died(self.id, self.spec, self.exitcode, how, stderr, self._last_asked)
        died.hop = self._io.hop
        return died

    def _ask_why(self) -> str:
        """Return why the worker was ended, if what has started it knows; may wait."""
        status, ask = self._last_words.status, self._io.ask_why
        return "" if ask is None or (status is not None and status >= 0) else ask()

    def _run_receiver(self) -> None:
        super()._run_receiver()
        if self._has_pulse:
            from ._ends import heartbeat

            heartbeat.look_again()
        self._reap()  # so that ``exit()`` alone leaves no zombie

    def _reap(self) -> None:
        self._io.wait()


class ForkError(ExecnetError, OSError, EOFError):
    """A gateway was used in a process that was forked from its coordinator."""


class RInfo:
    """What is known about a worker's interpreter, as attributes; ``gateway._rinfo()`` returns it.

    ``executable``, ``version_info`` (5 items), ``platform``, ``cwd``, ``pid``; also
    ``implementation`` and ``codecs`` if the worker reported them.  A worker that has joined a
    group that listens also has ``join_id`` and ``host``, and ``launcher``, ``job``, ``rank`` and
    ``size``, which are None if nobody knows them.
    """

    def __init__(self, mapping: Mapping[str, object]) -> None:
        self.__dict__.update(mapping)

    def __repr__(self) -> str:
        items = " ".join(f"{name}={value!r}" for name, value in sorted(self.__dict__.items()))
        return f"<{type(self).__name__} {items}>"

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class RemoteStatus(RInfo):
    """The status that a worker reported, as attributes."""


def rinfo_source(channel):
    # type: (Any) -> None
    """Send what ``RInfo`` holds; its source runs by itself, for programs that ask this way."""
    import os
    import sys

    channel.send(
        {
            "executable": sys.executable,
            "version_info": tuple(sys.version_info[:5]),
            "platform": sys.platform,
            "cwd": os.getcwd(),
            "pid": os.getpid(),
        }
    )
