"""Services: processes of this user's that stay, and keep state between programs.

``socketservice=NAME`` in a spec is a connection to one, which is started if it is not there.  Here
is what its code keeps, and what ends it.  Start at ``state`` and ``find``.
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
    """A service that runs, as ``find`` and ``find_all`` return it."""

    def __init__(self, folder: str, record: dict[str, Any]) -> None:
        self._found = folder, record
        self.name = str(record.get("service"))

    def __repr__(self) -> str:
        return f"<Service {self.name!r} of process {self._found[1].get('pid')}>"

    def status(self) -> dict[str, Any]:
        """Return what the service tells of itself; answered while its code runs, too.

        A dict of ``pid``, ``since`` (seconds since the epoch), ``clients``, ``running`` (code;
        with its stack where its connection has ended), ``kept`` (connections), ``state`` (its
        keys, as text), ``memory`` (bytes), ``idle`` (seconds), ``log`` and others.  Raises
        ``ServiceError`` if it does not answer.
        """
        return admin.status(self._found)

    def stop(self) -> None:
        """End the service, whatever it does; returns when its process is gone.

        Its code is interrupted and has some seconds before it is killed.  Raises
        ``ServiceError`` if it does not end.
        """
        admin.stop(self._found)


def find(name: str = "default", python: str | None = None) -> Service:
    """Return the service of this user that has a name, or a port, on this machine.

    name: that of ``socketservice=NAME``, or the port as text.  python: the command of its
    interpreter, where several have the name.  Raises ``ServiceError`` if none runs.
    """
    return Service(*admin.find(name, python))


def find_all() -> list[Service]:
    """Return all services of this user that run on this machine."""
    return [Service(*found) for found in admin.find_all()]


# ---------------------------------------------------------------- gateways over channels


def gatewaymaker(channel):  # type: ignore[no-untyped-def]
    """Make the gateway that ``ChannelGateway`` asks for at the other end of a channel.

    channel: of any gateway; it is used up.  Returns at once, while the interpreter starts; what
    it says goes on being passed on when the code that has called this has ended.  The other end
    can run whatever it wants here.  ``gateway.remote_exec(gatewaymaker)`` is enough where no
    execnet is installed, from Python 2.7 on.
    """
    import sys

    base = sys.modules[channel.__class__.__module__]
    modules = [base.load_part(*sent) for sent in channel.receive()]
    modules[-1].main(channel)


def ChannelGateway(
    channel: Channel, spec: XSpec | str = "popen", group: multi.Group | None = None
) -> Gateway:
    """Return a gateway whose bytes travel over a channel, to an interpreter that starts there.

    channel: one at whose other end ``gatewaymaker`` is called.  spec: what is to be started over
    there, or connected to from there, as with ``via=``.  group: which the gateway is in, None
    for the default one.  Raises TypeError for a channel of a worker's own end, else what
    ``Group.makegateway`` does.
    """
    from .gateway import Gateway  # the code of a service, which imports this, needs it seldom
    from .multi import default_group
    from .xspec import XSpec

    via = channel.gateway
    if not isinstance(via, Gateway):
        raise TypeError(f"{channel!r} belongs to {via!r}, and it has to be one to a worker")
    getattr(via, "_refuse_blocking", int)()  # one of ``execnet.aio`` does
    spec = XSpec(spec) if isinstance(spec, str) else spec
    if spec.via not in (None, via.id):
        raise ValueError(f"spec {spec.shown()!r}: via= is the gateway of the channel, {via.id}")
    vars(spec)["via"] = via.id

    def through(settings: Settings, execmodel: ExecModel) -> Endpoint:
        from ._via.stream import create_io_over

        return create_io_over(settings, execmodel, via, channel)

    return (group or default_group)._make_through(spec, through)
