"""Workers that a login has started in advance, with the source that this program would send.

``far_spare`` runs where the login leads to.  Start at ``have_spares``.
"""

from __future__ import annotations

from functools import cache

from .._ship.loading import code_to_run
from .._ship.parts import run
from .._ship.shipment import head_of_line, shipment_for
from .._transports.table import TRANSPORTS, interpreter_words
from ..xspec import XSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._specs import Settings
    from ..gateway import Gateway

SPARE, WAITING = "_via.far_spare", "_via.far_waiting"
EXECMODEL = "thread"  # of the source that is loaded in advance


@cache
def source_key() -> bytes:
    """Return what is the same only for programs that send the same source to workers."""
    from importlib.util import source_hash

    shipment = shipment_for(EXECMODEL)
    return source_hash(head_of_line().encode("ascii") + shipment.rest)


def source_key_of(settings: Settings) -> bytes | None:
    """Return the key of the source that a worker is sent; None: it is no ordinary worker."""
    model = str(settings.spec.execmodel)
    if settings.attach is not None or shipment_for(model) is not shipment_for(EXECMODEL):
        return None
    return source_key()


def have_spares(gateway: Gateway) -> None:
    """Have the worker of a login keep an interpreter ready from now on; waits for no answer."""
    if gateway.handshake.is_plain:  # without zlib it can't read what it would be sent
        return
    spec, executable = XSpec("popen"), gateway._rinfo().executable
    words = interpreter_words(spec, TRANSPORTS["popen"], executable)
    run(gateway, SPARE).send((words, packed_line()))


@cache
def packed_line() -> bytes:
    """Return the line for an interpreter that is to wait with our source, deflated."""
    import zlib

    options = {"head": head_of_line()}
    code = f"{code_to_run(WAITING, (), ships=True)}boot({options!r})\n"
    return zlib.compress((ascii(code) + "\n").encode("ascii"))
