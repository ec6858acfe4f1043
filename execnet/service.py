"""Services: processes of this user that keep running, and keep state between programs.

``socketservice=NAME`` in a spec connects to one, and starts it if necessary.  This module has the
state that its code keeps, and functions to find and end it.  Start at ``state`` and ``find``.
"""

from __future__ import annotations

from ._service import admin
from ._service.far_find import ServiceError as ServiceError
from ._service.far_gateway import state as state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from . import multi
    from ._endpoint import Endpoint
    from ._specs import Settings
    from .gateway import Gateway
    from .gateway_base import Channel, ExecModel
    from .xspec import XSpec

__all__ = [
    "ChannelGateway", "Service", "ServiceError", "find", "find_all", "gatewaymaker", "state",
]  # fmt: skip


class Service:
    """A running service, as returned by ``find`` and ``find_all``."""

    def __init__(self, folder: str, record: dict[str, object]) -> None:
        self._found = folder, record
        self.name = str(record.get("service"))

    def __repr__(self) -> str:
        return f"<Service {self.name!r} of process {self._found[1].get('pid')}>"

    def status(self) -> dict[str, Any]:
        """Return the status of the service; it answers even while its code runs.

        A dict of ``pid``, ``since`` (seconds since the epoch), ``clients``, ``running`` (code, with
        its stack if its connection has ended), ``ended`` (code that outlived a connection with
        ``attach=``, with its ``last`` item and ``error``), ``kept`` (connections), ``state`` (its
        keys, as text), ``memory`` (bytes), ``idle`` (seconds), ``log`` and others.  Raises
        ``ServiceError`` if it does not answer.
        """
        return admin.status(self._found)

    def stop(self) -> None:
        """End the service, whatever it is doing; returns when its process is gone.

        Its code is interrupted and gets some seconds before it is killed.  Raises ``ServiceError``
        if it does not end.
        """
        admin.stop(self._found)


def find(name: str = "default", python: str | None = None) -> Service:
    """Return the service of this user on this machine with a name, or a port.

    name: that of ``socketservice=NAME``, or the port as text.  python: the command of its
    interpreter, if several have the name.  Raises ``ServiceError`` if none is running.
    """
    return Service(*admin.find(name, python))


def find_all() -> list[Service]:
    """Return all services of this user that are running on this machine."""
    return [Service(*found) for found in admin.find_all()]


# ---------------------------------------------------------------- gateways over channels


def gatewaymaker(channel):  # type: ignore[no-untyped-def]
    """Make the gateway that ``ChannelGateway`` asks for at the other end of a channel.

    channel: of any gateway; it can't be used for anything else.  Returns at once, while the
    interpreter starts; its bytes are forwarded even after the calling code has ended.  The other
    end can run anything here.  If execnet is not installed, ``gateway.remote_exec(gatewaymaker)``
    is enough, from Python 2.7 on.
    """
    import sys

    base = sys.modules[channel.__class__.__module__]
    modules = [base.load_part(*sent) for sent in channel.receive()]
    modules[-1].main(channel)


def ChannelGateway(
    channel: Channel, spec: XSpec | str = "popen", group: multi.Group | None = None
) -> Gateway:
    """Return a gateway whose bytes travel over a channel, to an interpreter that starts there.

    channel: ``gatewaymaker`` is called at its other end.  spec: what to start there, or connect to
    from there, as with ``via=``.  group: the group of the gateway, None for the default one.
    Raises TypeError for a channel of a worker's own end, else what ``Group.makegateway`` raises.
    """
    from .gateway import Gateway  # the code of a service, which imports this, needs it seldom
    from .multi import default_group
    from .xspec import XSpec

    via = channel.gateway
    if not isinstance(via, Gateway):
        raise TypeError(f"{channel!r} belongs to {via!r}, and it has to be one to a worker")
    via.refuse_blocking()  # one of ``execnet.aio`` does
    spec = XSpec(spec) if isinstance(spec, str) else spec
    if spec.via not in (None, via.id):
        raise ValueError(f"spec {spec.shown()!r}: via= is the gateway of the channel, {via.id}")
    vars(spec)["via"] = via.id

    def through(settings: Settings, execmodel: ExecModel) -> Endpoint:
        from ._via.stream import create_io_over

        return create_io_over(settings, execmodel, via, channel)

    return (group or default_group)._make_through(spec, through)
