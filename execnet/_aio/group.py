"""Groups of an asyncio loop: make gateways, find them, end them all.

What waits for processes is that of ``multi.Group``, and runs in a thread for as long as it takes.
Start at ``Group``.
"""

from __future__ import annotations

import asyncio
from functools import partial

from .. import gateway_bootstrap, multi
from .._specs import Settings
from ..gateway_base import get_ident
from .gateway import Gateway
from .multichannel import MultiChannel
from .threads import in_thread, to_its_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
    from typing import Any

    from .._features.codecs import Codec
    from ..gateway_bootstrap import Through
    from ..xspec import XSpec

STARTS_MAX = 8  # calls that start gateways at once, each in a thread; one may start a thousand


class _Making:
    """One call that makes gateways, in its thread."""

    def __init__(self) -> None:
        self.gateways: list[Any] = []
        self.is_cancelled = False

    def cancel(self) -> None:
        """Have it fail soon; in any thread."""
        self.is_cancelled = True
        for gateway in list(self.gateways):
            gateway._io.kill()


class _Core(multi.Group):
    """The group as threads have it, with gateways of a loop."""

    def __init__(self, remote_execmodel: str) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.owner: Group | None = None
        self._makings: dict[int, _Making] = {}  # by thread
        super().__init__()
        self.set_execmodel("thread", remote_execmodel)

    def make(self, making: _Making, specs: list[XSpec | str | None]) -> list[Any]:
        """Start workers, in a thread; return their gateways."""
        ident = get_ident()
        self._makings[ident] = making
        try:
            started = self.makegateways(specs)
        finally:
            del self._makings[ident]
        if making.is_cancelled:
            for gateway in started:
                self._forget(gateway)
            gateway_bootstrap.abandon(*started)
        return started

    def _prepare(self, spec: XSpec | str | None, kind: type[Settings] = Settings) -> Settings:
        settings = super()._prepare(spec, kind)
        if settings.resume_s is not None:
            text = "resume= is not for execnet.aio: execnet.Group can take connections up again"
            raise ValueError(f"spec {settings.spec.shown()!r}: {text}")
        return settings

    def _start(
        self, settings: Settings, find: Callable[[str], Any], through: Through | None
    ) -> Any:
        making = self._makings[get_ident()]
        if making.is_cancelled:
            raise OSError("it was cancelled")
        assert self.loop is not None
        kind = partial(Gateway, loop=self.loop)
        gateway = gateway_bootstrap.start(settings, self.execmodel, find, through, kind)
        making.gateways.append(gateway)
        if making.is_cancelled:
            gateway._io.kill()
        return gateway

    def kill(self) -> None:
        """Have whoever waits for the end of workers kill them; in a thread."""
        self.terminate(0)


class Group:
    """Gateways that are made, used and ended together, in one asyncio loop.

    xspecs: specs of gateways that ``async with`` starts, as for ``makegateways``.
    remote_execmodel: how workers run things at once whose spec does not say.
    All methods belong to the loop's thread.  On the way out of ``async with``, when the loop shuts
    down as ``asyncio.run`` has it, and when the interpreter ends, the workers are ended.
    """

    def __init__(
        self, xspecs: Iterable[XSpec | str | None] = (), remote_execmodel: str = "thread"
    ) -> None:
        if isinstance(xspecs, str) and xspecs:
            raise ValueError(f"these specs are one string, not a list: write [{xspecs!r}]")
        self._xspecs = list(xspecs)
        self._core = _Core(remote_execmodel)
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
        """What a spec of None stands for."""
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

        On the way out with an error, a cancellation too, their code is interrupted at once.
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
            from .._speclists import expand, is_list

            if is_list(spec):
                text = f"is a list of {len(expand(spec))}, makegateways([...]) takes it"
                raise ValueError(f"spec {spec!r} {text}")
        return (await self.makegateways([spec]))[0]

    async def makegateways(self, specs: Iterable[XSpec | str | None]) -> list[Gateway]:
        """Start workers, all at once, and return their gateways in order.

        As ``execnet.Group.makegateways``.  If it is cancelled, it ends all of them.
        """
        if isinstance(specs, str) and specs:
            raise ValueError(f"these specs are one string, not a list: write [{specs!r}]")
        loop = await self._take_loop()
        making = _Making()
        async with self._starts:
            future = in_thread(loop, self._core.make, making, list(specs))
            return await to_its_end(future, lambda: in_thread(loop, making.cancel))

    async def _take_loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop, which is the group's from now on."""
        loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        if self._core.loop is None:
            if not _can_poll(loop):
                raise NotImplementedError(
                    f"execnet.aio needs a loop that polls descriptors, and {loop!r} has no"
                    " add_reader: use execnet.Group, from threads"
                )
            self._core.loop = loop
        if self._core.loop is not loop:
            raise RuntimeError(f"{self!r} belongs to another loop")
        if self._guard is None:
            self._core.owner = self  # so that workers in use don't end as nobody holds the group
            self._guard = self._end_with_loop()
            await self._guard.__anext__()
        return loop

    async def _end_with_loop(self) -> AsyncGenerator[None, None]:
        """End the workers when the loop closes its generators, of which this is one."""
        try:
            yield
        finally:
            if len(self._core) or self._core._gateways_to_join:
                await self._end(multi.ATEXIT_S)

    # using

    def remote_exec(self, source: Any, **kwargs: Any) -> MultiChannel:
        """Execute code in all workers at once; as ``execnet.Group.remote_exec``."""
        return MultiChannel([gateway.remote_exec(source, **kwargs) for gateway in self])

    def codec(self, codec: Codec | None) -> None:
        """Give all channels a codec that are made from now on; as ``execnet.Group.codec``."""
        self._core.codec(codec)

    def on_output(self, callback: Callable[[Gateway, str, str], object] | None) -> None:
        """Have a callback get what workers with ``output=forward`` write, line by line.

        As ``execnet.Group.on_output``: it runs in a thread, not in the loop.
        """
        self._core.on_output(callback)  # type: ignore[arg-type]

    async def reload_imports(self) -> list[str]:
        """Read the modules anew that workers import from here; as ``execnet.Group``'s."""
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


def _can_poll(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a loop has ``add_reader``; Windows' default one has not."""
    proactor = getattr(asyncio, "ProactorEventLoop", None)
    return proactor is None or not isinstance(loop, proactor)
