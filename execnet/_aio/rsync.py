"""RSync with gateways of an asyncio loop: threads handle the files, the loop the streams."""

# mypy: disable-error-code="override"
# What waits returns an awaitable here, as in ``_aio.gateway``.

from __future__ import annotations

import asyncio

from .. import rsync
from ..gateway_base import get_ident
from .threads import in_thread, to_its_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    from .._rsync.result import Result, TargetResult
    from ..gateway_base import Channel
    from .gateway import Gateway

    # Gateway, folder, what is called in the end, options.
    Asked = tuple[Gateway, str | os.PathLike[str], Callable[[], object] | None, dict[str, Any]]
    T = TypeVar("T")


class RSync(rsync.RSync):
    """Sends a directory tree to gateways of ``execnet.aio``; otherwise as ``execnet.RSync``.

    Your callbacks (``callback``, ``finishedcallback``, ``progress``) and ``filter`` run in a
    thread, one after the other.
    """

    _asked: list[Asked] | None = None

    def add_target(
        self,
        gateway: Gateway,
        destdir: str | os.PathLike[str],
        finishedcallback: Callable[[], object] | None = None,
        **options: Any,
    ) -> None:
        """Add a target for the next ``send``; as ``execnet.RSync.add_target``.

        Errors in the arguments are raised by ``send``.
        """
        self._asked = [*(self._asked or ()), (gateway, destdir, finishedcallback, options)]

    async def send(self, raises: bool = True) -> Result | None:
        """Send to all targets that were added since the last time; return the result.

        As ``execnet.RSync.send``.  If it is cancelled, it stops between two pieces.
        """
        asked, self._asked = self._asked or [], None
        send = super().send

        def work() -> Result | None:
            for gateway, destdir, finished, options in asked:
                rsync.RSync.add_target(self, gateway, destdir, finished, **options)
            return send(raises)

        return await _in_thread([target[0] for target in asked], work)

    @staticmethod
    async def pull(
        gateway: Gateway,
        remote_dir: str | os.PathLike[str],
        local_dir: str | os.PathLike[str],
        **options: Any,
    ) -> TargetResult:
        """Copy a file or a directory tree from a worker to this machine; return the result.

        options, and errors: as for ``execnet.RSync.pull``.  If it is cancelled, it stops between
        two pieces.
        """

        def work() -> TargetResult:
            return rsync.RSync.pull(gateway, remote_dir, local_dir, **options)

        return await _in_thread([gateway], work)


async def _in_thread(gateways: Iterable[Gateway], work: Callable[[], T]) -> T:
    """Do work that makes and uses channels in a thread; a cancellation closes them."""
    made: list[Channel] = []
    is_cancelled = False

    def run() -> T:
        ident = get_ident()
        for gateway in gateways:
            gateway.made_in[ident] = made
        try:
            if is_cancelled:
                raise OSError("it was cancelled")
            return work()
        finally:
            for gateway in gateways:
                gateway.made_in.pop(ident, None)

    def cancel() -> None:
        nonlocal is_cancelled
        is_cancelled = True
        for channel in made:
            channel.close()

    return await to_its_end(in_thread(asyncio.get_running_loop(), run), cancel)
