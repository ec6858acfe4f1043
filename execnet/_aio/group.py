"""Groups of an asyncio loop: make gateways, find them, end them all.

``multi.Group`` does what has to wait for processes, in a thread for as long as that takes.  Start
at ``Group``.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial

from .. import gateway_bootstrap, multi
from ..gateway_base import get_ident, new_lock
from .channel import check_callback
from .gateway import Gateway
from .multichannel import MultiChannel
from .poller import poller_of
from .threads import in_thread, to_its_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
    from typing import Any, TypeVar

    from .._ends.death import Source
    from .._features.codecs import Codec
    from .._specs import Settings
    from ..gateway import Gateway as NearGateway
    from ..gateway_bootstrap import Through
    from ..xspec import XSpec
    from .executor import Executor

    T = TypeVar("T")

STARTS_MAX = 8  # calls that start gateways at once, each in a thread; one may start a thousand


class _Request:
    """A call that makes gateways, or waits for some, in its thread."""

    def __init__(self, core: _Core) -> None:
        self.gateways: list[NearGateway] = []
        self.is_cancelled = False
        self._core = core
        self._made: list[NearGateway] = []  # what the caller is about to get
        self._lock = new_lock()  # guards that, and that it is cancelled

    def cancel(self) -> None:
        """Make it fail soon, and end what it has made; any thread may call."""
        with self._lock:
            self.is_cancelled = True
            made, self._made = self._made, []
        for gateway in list(self.gateways):
            if not self._core.is_shared(gateway):  # others may be starting through it
                gateway.endpoint.kill()
        self._core.drop(made)
        self._core.look_again()

    def note_made(self, gateways: list[NearGateway]) -> None:
        """Let the caller get gateways; if it was cancelled, end them."""
        with self._lock:
            if not self.is_cancelled:
                self._made = gateways
                return
        self._core.drop(gateways)


class _Core(multi.Group):
    """A group as in threads, but with gateways of a loop."""

    def __init__(self, remote_execmodel: str, respawn: int = 0) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.owner: Group | None = None
        self._requests: dict[int, _Request] = {}  # by thread
        super().__init__(respawn=respawn)
        self.set_execmodel("thread", remote_execmodel)

    def belong_to(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make gateways of this loop from now on."""
        self.loop, self._kind = loop, partial(Gateway, loop=loop, poller=poller_of(loop))

    def run(self, request: _Request, method: Callable[..., list[T]], *args: object) -> list[T]:
        """Call a method that makes gateways or waits for some, in a thread."""
        ident = get_ident()
        self._requests[ident] = request
        try:
            return method(*args)
        finally:
            del self._requests[ident]

    def make(
        self, request: _Request, specs: list[XSpec | str | None], fanout: int | None = None
    ) -> list[Any]:
        """Start workers, in a thread, with a fanout as a tree; return their gateways."""
        if fanout is None:
            started = self.run(request, self.makegateways, specs)
        else:
            started = self.run(request, self.tree, specs, fanout)
        request.note_made(started)
        return started

    def drop(self, gateways: list[Any]) -> None:
        """End gateways that nobody will get."""
        for gateway in gateways:
            self._forget(gateway)
        gateway_bootstrap.abandon(*gateways)

    def _is_wanted(self) -> bool:
        request = self._requests.get(get_ident())
        return request is None or not request.is_cancelled

    def look_again(self) -> None:
        """Have threads that wait for joiners see whether these are still wanted."""
        for door in [self._joins, *self._doors.values()]:
            if door is not None:
                door.look_again()

    def is_shared(self, gateway: object) -> bool:
        """Whether it is a connection through which others start."""
        return gateway in self._connections.gateways()

    def is_in_use(self) -> bool:
        """Whether there is anything to end."""
        doors = self._joins is not None or self._doors or self._launchers
        return bool(doors or self._gateways or self._gateways_to_join)

    def _prepare(self, spec: XSpec | str | None) -> Settings:
        settings = super()._prepare(spec)
        if settings.resume_s is not None:
            spec, shares = settings.spec, settings.is_shared and "share=yes"
            through = (spec.via and "via=") or (spec.installvia and "installvia=") or shares
            if through:
                text = f"resume= with {through} is not for execnet.aio, but for execnet.Group"
                raise ValueError(f"spec {settings.spec.shown()!r}: {text}")
            from .linked import let_resume

            let_resume()
        return settings

    def _start(
        self, settings: Settings, find: Callable[[str], NearGateway], through: Through | None
    ) -> NearGateway:
        request = self._requests.get(get_ident())  # None in the thread of a joiner
        if request is not None and request.is_cancelled:
            raise OSError("it was cancelled")
        gateway = super()._start(settings, find, through)
        if request is not None:
            request.gateways.append(gateway)
            if request.is_cancelled:
                gateway.endpoint.kill()
        return gateway

    def kill(self) -> None:
        """Make whoever waits for the end of workers kill them; called in a thread."""
        self.terminate(0)


class Group:
    """Gateways that are made, used and ended together, in one asyncio loop.

    xspecs: specs of gateways that ``async with`` starts, as for ``makegateways``.
    remote_execmodel: the execution model of workers whose spec names none.  respawn: how often each
    worker that dies is started anew from its spec.
    All methods belong to the loop's thread.  The workers are ended at the end of ``async with``,
    when ``asyncio.run`` shuts the loop down, and when the interpreter ends.
    """

    def __init__(
        self,
        xspecs: Iterable[XSpec | str | None] = (),
        remote_execmodel: str = "thread",
        *,
        respawn: int = 0,
    ) -> None:
        if isinstance(xspecs, str) and xspecs:
            raise ValueError(f"these specs are one string, not a list: write [{xspecs!r}]")
        self._xspecs = list(xspecs)
        self._core = _Core(remote_execmodel, respawn)
        self._starts = asyncio.Semaphore(STARTS_MAX)
        self._guard: AsyncGenerator[None, None] | None = None

    def __repr__(self) -> str:
        return f"<aio.{repr(self._core)[1:]}"

    def __len__(self) -> int:
        return len(self._core)

    def __iter__(self) -> Iterator[Gateway]:
        return iter(self._core)  # type: ignore[arg-type]

    def __getitem__(self, key: int | str | Gateway) -> Gateway:
        return self._core[key]  # type: ignore[return-value]

    def __contains__(self, key: object) -> bool:
        return key in self._core

    @property
    def defaultspec(self) -> str:
        """The spec that None stands for."""
        return self._core.defaultspec

    @defaultspec.setter
    def defaultspec(self, spec: str) -> None:
        self._core.defaultspec = spec

    async def __aenter__(self) -> Group:
        await self.makegateways(self._xspecs)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """End all workers, as ``terminate``, with 10 s to end by themselves.

        After an error or a cancellation, their code is interrupted at once.
        """
        self._core._is_hurried = error is not None
        try:
            await self.terminate(multi.TERMINATE_S)
        finally:
            self._core._is_hurried = False

    # making

    async def makegateway(self, spec: XSpec | str | None = None) -> Gateway:
        """Start a worker and return its gateway; as ``execnet.Group.makegateway``."""
        if isinstance(spec, str) and ("*" in spec or "[" in spec):
            from .._speclists import check_single

            check_single(spec)
        return (await self.makegateways([spec]))[0]

    async def makegateways(self, specs: Iterable[XSpec | str | None]) -> list[Gateway]:
        """Start workers, all at once, and return their gateways in order.

        As ``execnet.Group.makegateways``.  If it is cancelled, it ends all of them.
        """
        return await self._make_all(specs)

    async def tree(self, specs: Iterable[XSpec | str | None], fanout: int = 16) -> list[Gateway]:
        """Start workers as a tree, and return their gateways in order.

        As ``execnet.Group.tree`` of a group.  If it is cancelled, it ends all of them.
        """
        return await self._make_all(specs, fanout)

    async def _make_all(
        self, specs: Iterable[XSpec | str | None], fanout: int | None = None
    ) -> list[Gateway]:
        if isinstance(specs, str) and specs:
            raise ValueError(f"these specs are one string, not a list: write [{specs!r}]")
        loop = await self._take_loop()
        request = _Request(self._core)
        async with self._starts:
            future = in_thread(loop, self._core.make, request, list(specs), fanout)
            return await to_its_end(future, lambda: in_thread(loop, request.cancel))

    async def _take_loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop, which is the group's from now on."""
        loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        if self._core.loop is None:
            self._core.belong_to(loop)
        if self._core.loop is not loop:
            raise RuntimeError(f"{self!r} belongs to another loop")
        if self._guard is None:
            self._core.owner = self  # so that workers in use don't end as nobody holds the group
            self._guard = self._end_with_loop()
            await self._guard.__anext__()
        return loop

    async def _end_with_loop(self) -> AsyncGenerator[None, None]:
        """End the workers when the loop closes its asynchronous generators: this is one."""
        try:
            yield
        finally:
            if self._core.is_in_use():
                await self._end(multi.ATEXIT_S)

    def setlocalfactory(
        self, port: int | None = None, *, name: str | None = None, idle: float = 600
    ) -> None:
        """Make gateways that need a login through a service; as ``execnet.Group``'s."""
        self._core.setlocalfactory(port, name=name, idle=idle)

    # workers that dial in

    async def listen(
        self,
        address: str = "0.0.0.0:0",
        key: str | bytes | None = None,
        tls: bool | str = True,
        count: int | None = None,
        options: str = "",
        fanout: int | None = None,
    ) -> str:
        """Let workers dial in; as ``execnet.Group.listen``."""
        loop = await self._take_loop()
        listen = partial(self._core.listen, address, key, tls, count, options, fanout)
        return await to_its_end(in_thread(loop, listen), int)

    def join_command(
        self, via: str | None = None, key: str | None = None, python: str = "python3"
    ) -> str:
        """Return a command that becomes a worker; as ``execnet.Group.join_command``."""
        return self._core.join_command(via, key, python)

    async def launch(
        self, command: str | Sequence[str], via: str | None = None, python: str = "python3"
    ) -> None:
        """Start a program that runs a command, once or more; as ``execnet.Group.launch``."""
        loop = await self._take_loop()
        await to_its_end(in_thread(loop, self._core.launch, command, via, python), int)

    async def wait_for(self, count: int, timeout: float | None = None) -> list[Gateway]:
        """Wait until this many workers have dialled in; as ``execnet.Group.wait_for``."""
        loop = await self._take_loop()
        request = _Request(self._core)
        future = in_thread(loop, self._core.run, request, self._core.wait_for, count, timeout)
        return await to_its_end(future, lambda: in_thread(loop, request.cancel))

    def on_join(self, callback: Callable[[Gateway], object] | None) -> None:
        """Have a callback called with each worker that dials in; as ``execnet.Group.on_join``.

        It is a plain function, and runs in the loop, which handles its errors.
        """
        self._core.on_join(_in_loop(callback))

    # using

    def remote_exec(self, source: Source, **kwargs: object) -> MultiChannel:
        """Execute code in all workers at once; as ``execnet.Group.remote_exec``."""
        return MultiChannel([gateway.remote_exec(source, **kwargs) for gateway in self])

    def codec(self, codec: Codec | None) -> None:
        """Give a codec to calls and new channels from now on; as ``execnet.Group.codec``."""
        self._core.codec(codec)

    def executor(
        self,
        max_per_worker: int = 1,
        imports: Iterable[str] | None = None,
        codec: Codec | None = None,
        *,
        retries: int = 0,
        cancel: str | None = None,
    ) -> Executor:
        """Return an executor that calls functions in the workers, each in whichever is free.

        As ``execnet.Group.executor``; its futures are those of the loop, and its ``map`` is an
        asynchronous iterator.  ``async with`` waits for all calls in the end.
        """
        from .executor import Executor

        loop = asyncio.get_running_loop()
        return Executor(loop, self._core, max_per_worker, imports, codec, retries, cancel)

    def on_output(self, callback: Callable[[Gateway, str, str], object] | None) -> None:
        """Pass what workers with ``output=forward`` write to a callback, line by line.

        As ``execnet.Group.on_output``: it runs in a thread, not in the loop.
        """
        self._core.on_output(callback)  # type: ignore[arg-type]

    def on_state(self, callback: Callable[[Gateway, str], object] | None) -> None:
        """Have a callback called when a gateway with ``resume=`` loses or regains its connection.

        As ``execnet.Group.on_state``, but it runs in the loop, which handles its errors.
        """
        self._core.on_state(_in_loop(callback))

    def on_respawn(
        self, callback: Callable[[Gateway, Gateway | None, Exception], object] | None
    ) -> None:
        """Have a callback called when a worker that died was started anew, or could not be.

        As ``execnet.Group.on_respawn``, but it runs in the loop, which handles its errors.
        """
        self._core.on_respawn(_in_loop(callback))

    async def reload_imports(self) -> list[str]:
        """Read forwarded modules anew; as ``execnet.Group.reload_imports``."""
        loop = await self._take_loop()
        return await to_its_end(in_thread(loop, self._core.reload_imports), int)

    async def dump_stacks(self, timeout: float | None = 10.0) -> dict[str, str]:
        """Return the stacks of all workers' threads, by the id of their gateways.

        timeout: seconds for all together; the text of one that did not answer says so.
        """
        loop = await self._take_loop()
        deadline = None if timeout is None else loop.time() + timeout

        async def ask(gateway: Gateway) -> str:
            left = None if deadline is None else max(0.0, deadline - loop.time())
            try:
                return await gateway.dump_stacks(left)
            except (OSError, EOFError) as exc:
                return f"not available: {exc}"

        members = list(self)
        stacks = await asyncio.gather(*map(ask, members))
        return dict(zip((gateway.id for gateway in members), stacks, strict=True))

    # ending

    async def terminate(self, timeout: float | None = None) -> None:
        """End all workers and wait until they are gone; as ``execnet.Group.terminate``.

        If it is cancelled they are killed, and gone when it returns.
        """
        await self._take_loop()
        await self._end(timeout)
        guard, self._guard = self._guard, None
        self._core.owner = None
        if guard is not None:
            await guard.aclose()

    async def _end(self, timeout: float | None) -> None:
        loop = asyncio.get_running_loop()
        future = in_thread(loop, self._core.terminate, timeout)
        await to_its_end(future, lambda: in_thread(loop, self._core.kill))


def _in_loop(callback: Callable[..., object] | None) -> Callable[..., None] | None:
    """Return a function that has a callback called in the running loop, from any thread."""
    if callback is None:
        return None
    check_callback(callback)
    loop = asyncio.get_running_loop()

    def tell(*what: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(callback, *what)

    return tell
