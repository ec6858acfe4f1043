"""Makes the memory of a gateway with ``buffers=shared``, and has its worker open it.

It is a file without a name, of a size that nobody can change: a worker that cut it off would have
this process killed by SIGBUS.  The system frees it when neither side has it any more, however they
ended.  Start at ``Offer``.
"""

from __future__ import annotations

import fcntl
import os

from .._errors import BootstrapError
from .._ship import parts
from ..gateway_base import Message, above_stdio, dumps_internal
from . import far

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..gateway_base import BaseGateway
    from .far import Shared

PART = "_shared.far"
HALF_BYTES = 1 << 29  # that one side can have sent and the other not given back; taken as needed
F_ADD_SEALS, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW = 1033, 1, 2, 4
NO_ANSWER = "its channel was closed"


class Offer:
    """The memory of one gateway, from before its worker exists to the end of its stream.

    Raises ``BootstrapError`` if there is none.
    """

    def __init__(self) -> None:
        try:
            fd = above_stdio(os.memfd_create("execnet", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
            self._memory: far.Memory | None = far.Memory(fd, HALF_BYTES)
            os.ftruncate(fd, 2 * HALF_BYTES)
            fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW)
        except OSError as exc:
            raise BootstrapError(f"buffers=shared: there is no memory to share: {exc}") from exc
        self._shared: Shared | None = None

    def make(self, gateway: BaseGateway, finish: Callable[[dict[str, str]], object]) -> None:
        """Have a worker open it; in the receiver thread, when the worker has said hello.

        finish: called with {} once it has, or with ``error``, which says why it can't.
        """
        memory = self._memory
        if memory is None:  # the stream has ended
            return
        answers: list[object] = []

        def on_answer(problem: object) -> None:
            answers.append(problem)
            if len(answers) == 1:
                finish(self._begin(gateway, memory, problem))

        channel = gateway.newchannel()
        channel.setcallback(on_answer, endmarker=NO_ANSWER)
        found = os.fstat(memory.fd)
        told = channel.id, place_of(memory), (found.st_dev, found.st_ino), memory.half_bytes
        data = dumps_internal((parts.sent_parts(gateway, PART), told))
        gateway._post(Message.SOURCES, 0, data)

    def _begin(self, gateway: BaseGateway, memory: far.Memory, problem: object) -> dict[str, str]:
        try:
            if problem is None and self._memory is not None:
                self._shared = far.start(gateway, memory, 0)
                return {}
        except (OSError, ValueError, ImportError) as exc:
            return {"error": f"buffers=shared: this process can't map the memory: {exc}"}
        return {"error": f"buffers=shared: the worker can't share memory: {problem}"}

    def close(self) -> None:
        """Close the descriptor, as soon as no thread writes to it any more."""
        self._memory = None
        if self._shared is not None:
            self._shared.close()


def place_of(memory: far.Memory) -> str:
    """Return where processes of the same user find the file, which has no name."""
    return f"/proc/{os.getpid()}/fd/{memory.fd}"
