"""The services of another machine, for ``execnet service --spec``: asked through a worker there.

It does what ``admin`` does on this machine.  Start at ``There``.
"""

from __future__ import annotations

from .._ship.parts import LOADER, run, sent_parts
from . import admin
from .far_find import ServiceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..gateway import Gateway
    from ..gateway_base import Channel
    from .admin import Found
    from .far_find import Said


TALK, PROOF = "_service.far_talk", "script.socketserver"


class There:
    """The services of this user where a worker runs."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def find_all(self) -> list[Found]:
        """Return the running services, ordered by name; with their status, as far as known."""
        told = self._ask("services")
        if any(one.get("port") for one in told):
            told = self._ask("services", has_port=True)
        found = [(one.get("key", ""), one) for one in told]
        return sorted(found, key=lambda one: (str(one[1].get("service")), one[0]))

    def find(self, name: str, python: str | None = None) -> Found:
        """Return the service with a name, or with a port, as ``admin.find``."""
        return admin.chosen(self.find_all(), name, python, "there")

    def status(self, found: Found) -> Said:
        """Return the status of a service; ``ServiceError`` if it did not answer."""
        if "error" in found[1]:
            raise ServiceError(f"the service {found[1].get('service')!r}: {found[1]['error']}")
        return found[1]

    def stop(self, found: Found) -> None:
        """End a service, as ``admin.stop``."""
        self._ask("end", bool(found[1].get("port")), key=found[0])

    def log_lines(self, found: Found) -> list[str]:
        """Return the lines of a service's log."""
        return str(self._ask("log", key=found[0])[0]["log"]).splitlines()

    def _ask(self, what: str, has_port: bool = False, **more: str) -> list[Said]:
        """Return the answers.  has_port: whether a service with a port may be asked."""
        code, channel = self._run(has_port), self._gateway.newchannel()
        code.send(channel)
        channel.send({"do": what, **more})
        answers = list(channel)
        if what != "services" and answers and "error" in answers[0]:
            raise ServiceError(answers[0]["error"])
        return answers

    def _run(self, has_port: bool) -> Channel:
        if not has_port:
            return run(self._gateway, TALK)
        code = self._gateway.remote_exec(LOADER)
        code.reconfigure(py2str_as_py3str=False)  # what Python 2 calls str are bytes here
        code.send(sent_parts(self._gateway, PROOF) + sent_parts(self._gateway, TALK))
        return code
