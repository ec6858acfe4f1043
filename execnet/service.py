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

__all__ = ["Service", "ServiceError", "find", "find_all", "state"]


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
