"""Groups: make gateways, find them, and end them all.

Start at ``Group``; its ``terminate`` makes sure that no worker is left running.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial

from . import gateway_bootstrap, gateway_io
from ._clock import monotonic
from ._ends import fork
from ._ends.terminate import Turn, carriers_last, end_members, name_of, register_at_exit
from ._ends.terminate import safe_terminate as safe_terminate
from ._errors import NoMember
from ._join.listening import Listening
from ._log import INFO, note
from ._multichannel import MultiChannel as MultiChannel
from ._specs import JOINED, Settings
from ._starts import Starts, Tree
from ._transports.sharing import Connections
from .gateway import Gateway
from .gateway_base import ExecModel, get_execmodel, new_rlock
from .xspec import XSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from typing import Any

    from ._calls.executor import Executor
    from ._features.codecs import Codec
    from ._imports.library import Library
    from ._output.near import Output
    from ._reports import Reporter
    from ._respawn.respawner import Respawner
    from ._service.factory import LocalFactory
    from .gateway_bootstrap import Through

    Arrange = Callable[[list[Settings]], list[XSpec]]


class Group(Listening):
    """Gateways that you make, use and end together; a ``with`` block ends them when it ends.

    Any thread may call.
    xspecs: specs of gateways to start at once, as for ``makegateways``.  execmodel: the execution
    model of both ends.  respawn: how often each worker that dies is started anew from its spec;
    ValueError for no such number, or with greenlets.
    """

    defaultspec = "popen"
    tree = Tree()  # as ``makegateways``, through each other
    _kind: Callable[..., Gateway] = Gateway  # what is made over a stream
    _reporter: Reporter | None = None  # tells the callback of ``on_state``

    def __init__(
        self,
        xspecs: Iterable[XSpec | str | None] = (),
        execmodel: str | ExecModel = "thread",
        *,
        respawn: int = 0,
    ) -> None:
        self._gateways: list[Any] = []
        self._gateways_to_join: list[Any] = []  # told to exit, may not have ended yet
        self._ids_starting: set[str] = set()
        self._autoid = 0
        self._connections = Connections()  # which workers with share=yes start through
        self._factory: LocalFactory | None = None
        self._at_exit = False
        self._is_hurried = False  # running code gets no time to finish, but is interrupted at once
        self._lock = new_rlock()
        self._launchers, self._doors, self._closing = [], {}, []
        self._executors: list[Executor] = []  # that are told of new members
        self._codec: Codec | None = None
        self._output: Output | None = None  # where forwarded lines go; made when needed
        self._library: Library | None = None  # modules that workers import; as well
        self._respawner: Respawner | None = None
        if respawn != 0:
            from ._respawn.respawner import Respawner

            self._respawner = Respawner(self, respawn)
        self.set_execmodel(execmodel)
        self._at_exit_registered = True
        register_at_exit(self._cleanup_atexit)
        fork.register(self)
        self.makegateways(xspecs)

    # execution models

    @property
    def execmodel(self) -> ExecModel:
        """The execution model of this process."""
        return self._execmodel

    @property
    def remote_execmodel(self) -> ExecModel:
        """The execution model of workers whose spec does not name one."""
        return self._remote_execmodel

    def set_execmodel(
        self, execmodel: str | ExecModel, remote_execmodel: str | ExecModel | None = None
    ) -> None:
        """Set the execution models of this process and of workers (None: the same).

        Raises ValueError for an unknown one, and once the group has gateways.
        """
        if self._gateways:
            raise ValueError(f"can't set the execution model, there are gateways: {self}")
        if self._respawner is not None and not get_execmodel(execmodel).has_main_thread:
            raise ValueError(f"respawn= needs threads, and this group would have {execmodel}")
        remote = execmodel if remote_execmodel is None else remote_execmodel
        self._execmodel, self._remote_execmodel = get_execmodel(execmodel), get_execmodel(remote)
        self._turn = Turn(self._execmodel)  # to end the group

    def setlocalfactory(
        self, port: int | None = None, *, name: str | None = None, idle: float = 600
    ) -> None:
        """From now on, make gateways that need a login through a service of this user.

        The service keeps one login to each distinct address, also in a container, and further
        gateways to there, of any program, start through it.  Others are made as before.
        port, name: of the service, as in ``socketservice=``.  idle: how many seconds a login
        without gateways is kept.  Raises ValueError for a bad name or port.
        """
        from ._service.factory import LocalFactory

        self._factory = LocalFactory(self._connections, port, name, idle)

    # container

    def __repr__(self) -> str:
        return f"<Group {[name_of(gateway) for gateway in self]!r}>"

    def __len__(self) -> int:
        return len(self._gateways)

    def __iter__(self) -> Iterator[Gateway]:
        return iter(list(self._gateways))

    def __getitem__(self, key: int | str | Gateway) -> Gateway:
        if isinstance(key, int):
            try:
                return self._gateways[key]  # type: ignore[no-any-return]
            except IndexError:
                raise NoMember(key) from None
        for gateway in self:
            if gateway == key or name_of(gateway) == key:
                return gateway
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        with suppress(KeyError):
            return self[key] is not None  # type: ignore[index]
        return False

    def __enter__(self) -> Group:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """End all workers like ``terminate``, with 10 s to end by themselves.

        If the block raised an error, their code is interrupted at once.
        """
        self._is_hurried = error is not None
        try:
            self.terminate(timeout=TERMINATE_S)
        finally:
            self._is_hurried = False

    def _register(self, gateway: Gateway) -> None:
        if not gateway.id:
            raise ValueError(f"{gateway!r} has no id")
        with self._lock:
            if gateway.id in self:
                raise ValueError(f"there is a gateway {gateway.id!r} already")
            self._gateways.append(gateway)
            self._adopt(gateway)

    def _adopt(self, gateway: Gateway) -> None:  # holds _lock
        gateway._group = self
        if self._codec is not None:
            gateway.codec = self._codec
        self._end_at_exit()

    def _end_at_exit(self) -> None:
        with self._lock:
            if not self._at_exit_registered:
                self._at_exit_registered = True
                register_at_exit(self._cleanup_atexit)

    def _replace(self, old: Gateway, new: Gateway) -> None:
        """Let a gateway take another's place; ValueError if that is no member any more."""
        with self._lock:
            self._gateways[self._gateways.index(old)] = new
            self._adopt(new)
            old._group = None

    def _on_loss(self, gateway: Gateway) -> None:
        """A member's worker died; in the thread that reads."""
        if self._respawner is not None:
            self._respawner.on_loss(gateway)

    def _awaits_workers(self) -> bool:
        """Whether workers that died are to be started anew."""
        return self._respawner is not None and self._respawner.is_awaited()

    def _unregister(self, gateway: Gateway) -> None:
        if self._respawner is not None:
            self._respawner.forget(gateway)
        with self._lock:
            if gateway in self._gateways:
                self._gateways.remove(gateway)
                self._gateways_to_join.append(gateway)
        self._tell_executors()

    def _tell_executors(self) -> None:
        for executor in list(self._executors):
            executor.on_group_changed()

    # making

    def allocate_id(self, spec: XSpec) -> None:
        """Give a spec that has no id the next one: gw0, gw1, ...

        Raises ValueError if a gateway of the group has the id of the spec.
        """
        with self._lock:
            while spec.id is None:
                id = f"gw{self._autoid}"
                self._autoid += 1
                if not self._is_taken(id):
                    spec.id = id
                    return
            if self._is_taken(spec.id):
                raise ValueError(f"spec {spec.shown()!r}: there is a gateway {spec.id!r} already")

    def _is_taken(self, id: str) -> bool:
        return id in self or id in self._ids_starting

    def makegateway(self, spec: XSpec | str | None = None) -> Gateway:
        """Start a worker and return its gateway.

        spec: where and how, a spec string or object; None or "" takes ``defaultspec``.
        Raises ValueError for a spec without a known place, or with an id that is taken, and
        ``BootstrapError`` if the worker can't be started; then nothing of it is left.
        """
        if isinstance(spec, str) and ("*" in spec or "[" in spec):
            from ._speclists import check_single

            check_single(spec)
        return self.makegateways([spec])[0]

    def makegateways(self, specs: Iterable[XSpec | str | None]) -> list[Gateway]:
        """Start workers, all at once, and return their gateways in order.

        specs and errors as in ``makegateway``; if one fails, none of them are left.  A string may
        stand for several: ``4*popen``, ``ssh=node[01-16]``, ``ssh=node[1,4-6]``.
        """
        return self._make_all(specs)

    def _make_all(
        self, specs: Iterable[XSpec | str | None], arrange: Arrange | None = None
    ) -> list[Gateway]:
        """Start workers; ``arrange`` gets specs that have ids, and says how to reach them."""
        if isinstance(specs, str) and specs:
            raise ValueError(f"these specs are one string, not a list: write [{specs!r}]")
        try:
            return self._make_reserved(specs, arrange)
        except (OSError, ImportError) as exc:  # wherever it ran out of descriptors
            raise gateway_io.with_advice(exc) from exc

    def _make_reserved(self, specs: Iterable[Any], arrange: Arrange | None) -> list[Gateway]:
        prepared = [self._prepare(one) for spec in specs for one in _expanded(spec)]
        for settings in prepared:
            if settings.imports is not None:
                from ._imports.near import names_in_spec

                names_in_spec(self._get_library(), settings)
        self._reserve(prepared)
        try:
            if arrange is not None:
                prepared = [self._prepare(spec) for spec in arrange(prepared)]
            gateway_io.check_descriptors(prepared)
            return self._bring_up(self._starts_of(prepared), self._register_new)
        finally:
            self._ids_starting.difference_update(settings.id for settings in prepared)

    def _starts_of(self, prepared: list[Settings]) -> Starts:
        return Starts(prepared, self.execmodel, self._start, self._find, self._connections)

    def _bring_up(self, starts: Starts, register: Callable[[Gateway], object]) -> list[Gateway]:
        """Start workers, and register their gateways; if one fails, none are left."""
        try:
            started = starts.run()
            self._forward_output(started, starts.deadlines)
            self._forward_imports(started)
            for gateway in started:
                register(gateway)
                note("gateway", INFO, gateway.describe, gateway.id)
            self._tell_executors()
        except BaseException:
            starts.abandon(self._forget)
            raise
        return started

    def _register_new(self, gateway: Gateway) -> None:
        self._register(gateway)
        if self._respawner is not None:
            self._respawner.enrol(gateway)

    def _make_through(self, spec: XSpec | str, through: Through) -> Gateway:
        """Start one worker over a stream that a function makes; errors as for ``makegateway``."""
        settings = self._prepare(spec)
        self._reserve([settings])
        gateway = None
        try:
            deadline = settings.deadline()
            gateway = self._start(settings, self._find, through)
            gateway_bootstrap.wait_ready(gateway, deadline)
            self._forward_output([gateway], {gateway.id: deadline})
            self._register(gateway)
            note("gateway", INFO, gateway.describe, gateway.id)
        except BaseException:
            if gateway is not None and gateway.hasreceiver():
                gateway_bootstrap.abandon(gateway)
            raise
        finally:
            self._ids_starting.discard(settings.id)
        return gateway

    def _find(self, id: str) -> Gateway:
        if id not in self:
            raise KeyError(id, [gateway.id for gateway in self])
        return self[id]

    def _forget(self, gateway: Gateway) -> None:
        if self._respawner is not None:
            self._respawner.forget(gateway)
        if gateway in self._gateways:
            self._gateways.remove(gateway)

    def _prepare(self, spec: XSpec | str | None) -> Settings:
        spec = spec or self.defaultspec
        if isinstance(spec, str):
            spec = XSpec(spec)
        if not isinstance(spec, XSpec):
            raise TypeError(f"a spec is a string or an XSpec, not {spec!r}")
        settings = Settings(spec)
        if self._factory is not None and self._factory.takes(settings):
            begin = partial(self._start, find=self._find, through=None)
            settings.through = partial(self._factory.make_io, begin)
        if settings.unknown:
            self._on_unknown(settings)
        if spec.execmodel is None:
            spec.execmodel = self.remote_execmodel.backend
        return settings

    def _on_unknown(self, settings: Settings) -> None:
        from ._mistakes import warn_of_slips  # once a key, if it is much like a known one

        warn_of_slips(settings)

    def _reserve(self, specs: list[Settings]) -> None:
        """Give ids to specs that have none; concurrent starts never get the same one."""
        with self._lock:
            before = set(self._ids_starting)
            try:
                given_first = sorted(specs, key=lambda settings: settings.spec.id is None)
                for settings in given_first:
                    self.allocate_id(settings.spec)
                    self._ids_starting.add(settings.id)
            except ValueError:
                self._ids_starting = before
                raise

    def _start(
        self, settings: Settings, find: Callable[[str], Gateway], through: Through | None
    ) -> Gateway:
        """Start one worker without waiting for its answer."""
        if settings.type == JOINED and through is None:
            return self._take_joiner(settings)
        return gateway_bootstrap.start(settings, self.execmodel, find, through, self._kind)

    # using

    def on_output(self, callback: Callable[[Gateway, str, str], object] | None) -> None:
        """Call a function for each line that workers with ``output=forward`` write.

        callback: called with the gateway, "stdout" or "stderr", and the line without its end;
        for one line at a time, in a thread that no gateway needs.  Its errors are written to
        stderr, once.  None: print lines as "[gw0] line", as without a callback.
        """
        self._get_output().set_callback(callback)

    def on_state(self, callback: Callable[[Gateway, str], object] | None) -> None:
        """Call a function when a gateway with ``resume=`` loses or regains its connection.

        callback: called with the gateway and "lost" or "resumed", in a thread that no gateway
        needs, one call at a time.  Its errors are written to stderr.  None: call nothing.
        """
        from ._reports import Reporter

        self._reporter = None if callback is None else Reporter(callback)

    def on_respawn(
        self, callback: Callable[[Gateway, Gateway | None, Exception], object] | None
    ) -> None:
        """Call a function when a worker that died was started anew, or could not be.

        callback: called with the lost gateway, the one in its place and the error of the lost one;
        or, after a start that failed, with the lost gateway, None and the error of the start.  It
        runs in a thread that no gateway needs, one call at a time; its errors go to stderr.  None:
        call nothing.  Raises ValueError for a group without ``respawn``.
        """
        if self._respawner is None:
            raise ValueError("the group starts no worker anew: Group(respawn=3) would")
        self._respawner.set_callback(callback)

    def _get_output(self) -> Output:
        with self._lock:
            if self._output is None:
                from ._output.near import Output

                self._output = Output()
            return self._output

    def _forward_output(self, started: list[Gateway], deadlines: dict[str, float | None]) -> None:
        kinds = [(one.settings.output, one.settings.logging_level) for one in started]
        if any(output == "forward" or level is not None for output, level in kinds):
            from ._output.logs import forward_wanted

            forward_wanted(self._get_output, started, deadlines)

    def reload_imports(self) -> list[str]:
        """Read again the modules that workers import from here; return the names of changed ones.

        Like ``Gateway.reload_imports``, for all members to which something is forwarded.
        """
        self._get_library().forget()
        forwarding = [gateway.forwarding for gateway in self if isinstance(gateway, Gateway)]
        return sorted({name for one in forwarding if one is not None for name in one.reload()})

    def _get_library(self) -> Library:
        with self._lock:
            if self._library is None:
                from ._imports.library import Library

                self._library = Library()
            return self._library

    def _forward_imports(self, started: list[Gateway]) -> None:
        for gateway in started:
            if gateway.settings.imports is not None:
                from ._imports.near import names_in_spec

                library = self._get_library()
                names = names_in_spec(library, gateway.settings)
                gateway.get_forwarding(library).allow(names)

    def remote_exec(
        self, source: str | types.FunctionType | types.ModuleType, **kwargs: object
    ) -> MultiChannel:
        """Execute code in all workers at once; arguments and errors as for a gateway."""
        return MultiChannel([gateway.remote_exec(source, **kwargs) for gateway in self])

    def executor(
        self,
        max_per_worker: int = 1,
        imports: Iterable[str] | None = None,
        codec: Codec | None = None,
        *,
        retries: int = 0,
        cancel: str | None = None,
    ) -> Executor:
        """Return a ``concurrent.futures.Executor`` that calls functions in the workers.

        Each call goes to whichever worker is free.  The executor follows changes of the group.
        max_per_worker: how many calls one worker runs at once, each in a thread.  imports: modules
        that workers import from here, as with ``Gateway.forward_imports``.  codec: for arguments
        and results; None for that of the group.  retries: how often a call may run again
        elsewhere if its worker dies.  cancel: what ``cancel()`` of a future does to a running call:
        "interrupt" it with KeyboardInterrupt, "kill" its worker, or nothing (None).
        Raises ValueError for bad arguments.
        """
        from ._calls.executor import Executor

        return Executor(self, max_per_worker, imports, codec, retries, cancel)

    def codec(self, codec: Codec | None) -> None:
        """Give this codec, or None, to calls and to new channels of ``remote_exec`` from now on."""
        with self._lock:
            self._codec = codec
            for gateway in self._gateways:
                gateway.codec = codec

    # ending

    def terminate(self, timeout: float | None = None) -> None:
        """End all workers and wait until they are gone.

        timeout: seconds for all of them together to end by themselves; then they are killed.  None
        gives them twice the longest ``grace`` among them (10 s, if no spec has one), which is what
        an orderly end may take, and 10 s more.  In a callback of a member it does not wait for the
        thread that runs the callback.
        """
        deadline = None if timeout is None else monotonic() + timeout
        (leave,) = map(self._turn.take, (deadline,))  # doc/interrupts.rst, "Locks"
        try:
            if leave is None:  # another caller is ending what there is
                return
            self._stop_starting(deadline)
            while self._gateways or self._gateways_to_join or self._connections.gateways():
                self._terminate_all(timeout, deadline)
                self._stop_starting(deadline)  # anew, what died meanwhile
            self._end_launchers(deadline)
            self._at_exit_registered = False  # so the group can go when nobody has it any more
            atexit.unregister(self._cleanup_atexit)
        finally:
            if leave is not None:
                leave()
        if self._output is not None:  # its callback may want the turn
            self._output.drain(deadline)

    def _stop_starting(self, deadline: float | None) -> None:
        if self._respawner is not None:
            self._respawner.cancel()
        self._stop_listening()
        if self._respawner is not None:
            self._respawner.wait(deadline)

    def _terminate_all(self, timeout: float | None, deadline: float | None) -> None:
        with self._lock:
            members = self._gateways + self._gateways_to_join
            self._gateways_to_join = []
        connections = self._connections.gateways()
        remaining = [member for member in members if hasattr(member, "exit")] + connections
        options = timeout, deadline, self._is_hurried, self._at_exit
        for ends in carriers_last(remaining):
            self._turn.ending = own = [member for member in ends if isinstance(member, Gateway)]
            end_members(self.execmodel, ends, own, *options)
        self._connections.forget(connections)
        with self._lock:  # foreign members need not unregister themselves
            self._gateways_to_join = [g for g in self._gateways_to_join if g not in members]
            self._gateways[:] = [g for g in self._gateways if g not in members]

    def _disown(self) -> None:
        """In a forked process: the gateways are the parent's."""
        self._gateways, self._gateways_to_join = [], []
        self._ids_starting, self._executors = set(), []
        self._connections, self._factory = Connections(), None  # these are the parent's
        self._disown_joins()
        self._turn, self._lock = Turn(self._execmodel), new_rlock()

    def dump_stacks(self, timeout: float | None = 10.0) -> dict[str, str]:
        """Return the stacks of the threads of all workers, by the id of the gateway.

        timeout: seconds for all together; for a worker that does not answer, the text says so.
        """
        from ._ends.stacks import collect_stacks

        deadline = None if timeout is None else monotonic() + timeout
        return collect_stacks(list(self), deadline)

    def _cleanup_atexit(self) -> None:
        self._at_exit = True
        try:
            self.terminate(timeout=ATEXIT_S)
        except KeyboardInterrupt:
            names = ", ".join(str(name_of(member)) for member in self._turn.ending)
            with suppress(Exception):  # there may be no stderr
                sys.stderr.write(f"execnet: interrupted while these were ending: {names}\n")


def _expanded(spec: XSpec | str | None) -> list[Any]:
    if isinstance(spec, str) and ("*" in spec or "[" in spec):  # else it is no list in short
        from ._speclists import expand

        return [*expand(spec)]
    return [spec]


TERMINATE_S = 10.0  # for the end of a with statement
ATEXIT_S = 1.0


default_group = Group()
makegateway = default_group.makegateway
set_execmodel = default_group.set_execmodel
