"""Other ways to a worker of a tree, for when the worker that leads there has died.

The lost worker waits beside its supervisor for a login, whichever way that comes.  So it is tried
through other workers of the same level as the dead one, and then directly.  Start at ``Detours``.
"""

from __future__ import annotations

from ..gateway import Gateway
from .ways import Maker, over_gateway

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .._specs import Settings
    from ..gateway_base import ExecModel

    Level = tuple[list[str], int]  # ids, and at which of them to begin

MOST = 3  # how many other workers are tried before the direct way


def leads_anywhere(settings: Settings) -> bool:
    """Whether what a spec says leads to the same machine wherever it is said.

    A container has its name at one machine, and so has the path of a socket.
    """
    if settings.type == "socket":
        return isinstance(settings.address, tuple)
    return settings.type in ("ssh", "vagrant_ssh")


class Detours(Maker):
    """Makes connections through the gateway that a spec names, and by other ways when that ends.

    via: that gateway.  level: which others lead as far as it does.  direct: makes connections from
    here.  The thread that makes attempts calls ``take``, any thread the others.
    """

    def __init__(
        self, settings: Settings, execmodel: ExecModel, via: Gateway, level: Level, direct: Maker
    ) -> None:
        home = over_gateway(settings, execmodel, via)
        super().__init__(home.first, home.anew, via)
        self._settings, self._execmodel = settings, execmodel
        self._ids, self._start = level
        self._direct = direct
        self._way: Maker = home  # by which the worker was reached last
        direct.name = "directly"

    def ways(self, group: Iterable[object] | None, is_late: bool) -> list[Maker]:
        """Return what may make the next connection, in the order in which to try it.

        While the gateway on the way lives, that is this way alone.  If it has no connection itself,
        it may come back: others are tried in the second half of the time.
        """
        way, via = self._way, self._way.carrier
        if via is None:
            return [way]
        lives = via.is_live
        if lives and not (is_late and via.endpoint.is_out_of_reach()):
            return [way]
        return [*([way] if lives else []), *self._others(group or ()), self._direct]

    def _others(self, group: Iterable[object]) -> list[Maker]:
        living = {
            gateway.id: gateway
            for gateway in group
            if isinstance(gateway, Gateway)
            and gateway.is_live
            and not gateway.endpoint.is_out_of_reach()
            and gateway is not self._way.carrier
        }
        ids = self._ids[self._start :] + self._ids[: self._start]
        found = [living[id] for id in ids if id in living][:MOST]
        self._start = (self._start + len(found)) % len(ids)  # other ones, if these lead nowhere
        return [self._over(gateway) for gateway in found]

    def _over(self, gateway: Gateway) -> Maker:
        maker = over_gateway(self._settings, self._execmodel, gateway)
        maker.name = f"via {gateway.id}"
        return maker

    def take(self, way: Maker) -> None:
        """Note by which way the connection in use was made."""
        self._way, self.carrier = way, way.carrier

    def is_final(self, way: Maker) -> bool:
        """Whether nothing else is to be tried when this way leads to no such worker.

        Other ways may lead to another user, or to another machine with the same name.
        """
        return way is self._way and not self.hop()

    def why_elsewhere(self) -> str:
        """Return why other ways are tried; "" if they are not."""
        hop, via = self.hop(), self.carrier
        if via is None or not hop:
            return ""
        how = str(via.end_error or "as asked").partition("\n")[0]
        return f"{via.id}, which it went via, has ended: {how}"
