"""Logins over ssh: which place a spec logs in to, how many do so at once, which were refused.

An sshd with its defaults drops logins at random while ten are under way (``MaxStartups``), and
gives out ten sessions on a connection (``MaxSessions``).  Start at ``Logins``.
"""

from __future__ import annotations

import os

from .._ends import fork
from ..gateway_base import new_lock
from .table import ssh_place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._errors import BootstrapError
    from ..xspec import XSpec

    Address = tuple[str | None, ...]

AT_ONCE = 8  # logins under way to one address
FIRST_PAUSE_S = 0.2  # after the first refusal; each pause is twice as long as the one before
LONGEST_PAUSE_S = 5.0
CLOSED_TRIES = 6  # logins that a server closed without giving a reason
SSH_FAILED = 255  # the exit status if ssh itself failed

# The server, or a relay in front of it, closed the connection before the key exchange; or the
# process that shares a connection got no further session from the server.  Not compiled here, which
# would cost programs without ssh a millisecond as well.
_REFUSED = (
    r"(kex|ssh)_exchange_identification: .*(closed by remote host|reset by peer)"
    r"|banner exchange: .*(reset by peer|Broken pipe)"
    r"|mux_client_\w+: .*refused"
)
_CLOSED = r"Connection (closed|reset) by "
# What ssh may say in addition, without giving another reason.
_BESIDE = (
    r"Connection (closed|reset) by |ControlSocket .* disabling multiplexing|Warning: |debug\d: "
)


def address_of(spec: XSpec) -> Address | None:
    """Return what identifies the place that ssh connects to; None for a spec without a login.

    This is the text of the spec: only ssh knows what it stands for in its configuration.
    """
    if spec.ssh:
        return ("ssh", spec.via, spec.ssh_config, *ssh_place(spec))
    if spec.vagrant_ssh:
        return ("vagrant", spec.via, spec.ssh_config, spec.vagrant_ssh)
    return None


def was_refused(error: BootstrapError, tries: int = 1) -> bool:
    """Whether a server took no login, for a reason that may be gone a moment later.

    tries: how many logins in a row have failed.  Since version 10, OpenSSH only says that the
    connection was closed, and says the same for an account that is denied.  So such a login is
    tried again only a few times.
    """
    if error.exitcode != SSH_FAILED or error.noise:
        return False
    import re  # few programs need it, and it takes long

    lines = [line for line in error.stderr.splitlines() if line.strip()]
    reasons = [line for line in lines if not re.match(_BESIDE, line)]
    if not reasons:
        return tries < CLOSED_TRIES and any(re.match(_CLOSED, line) for line in lines)
    return all(re.match(_REFUSED, line) for line in reasons)


def pause_s(tries: int) -> float:
    """Return how many seconds to wait after this many logins in a row were refused.

    A part is random, so that logins that were refused together do not come together again.
    """
    longest: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (tries - 1))
    return longest * (0.75 + 0.25 * os.urandom(1)[0] / 255)


class Logins:
    """The logins under way in this process, whichever groups and threads they belong to.

    ``_lock`` guards them.  A login is any object; ending one that is not there does nothing.
    """

    def __init__(self) -> None:
        self._lock = new_lock()
        self._under_way: dict[Address, set[object]] = {}
        fork.register(self)

    def begin(self, address: Address, login: object) -> bool:
        """Whether a login may begin now; if so, it counts as under way until ``end``."""
        with self._lock:
            under_way = self._under_way.setdefault(address, set())
            if len(under_way) >= AT_ONCE:
                return False
            under_way.add(login)
            return True

    def end(self, address: Address, login: object) -> None:
        """A login has succeeded or failed, or was given up."""
        with self._lock:
            under_way = self._under_way.get(address, set())
            under_way.discard(login)
            if not under_way:
                self._under_way.pop(address, None)

    def _disown(self) -> None:
        """Forget all, in a forked process, where no login is under way."""
        self.__init__()  # type: ignore[misc]


logins = Logins()
