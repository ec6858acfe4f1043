"""What a group offers for workers that dial in.

The rest is imported when a group begins to listen.  Start at ``Listening.listen``.
"""

from __future__ import annotations

from .._specs import JoinedSettings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .._endpoint import Endpoint
    from .._specs import Settings
    from ..gateway import Gateway
    from ..gateway_base import ExecModel
    from .near import Joins


class Listening:
    """The part of a group that has a door; any thread may call."""

    _joins: Joins | None = None
    _lock: Any  # these are a group's
    _end_at_exit: Callable[[], None]
    _tell_executors: Callable[[], None]

    if TYPE_CHECKING:

        @property
        def execmodel(self) -> ExecModel: ...
        def _prepare(self, spec: Any, kind: type[Settings] = ...) -> Settings: ...
        def _make_through(self, spec: Any, through: Any, kind: type[Settings] = ...) -> Gateway: ...

    def listen(
        self,
        address: str = "0.0.0.0:0",
        key: str | bytes | None = None,
        tls: bool | str = True,
        count: int | None = None,
        options: str = "",
    ) -> str:
        """Let workers dial in: whatever runs ``join_command()`` somewhere becomes one.

        address: host:port or [IPv6 address]:port; port 0 takes a free one.  key: the file of the
        key that joiners must have, or its 32 bytes; None for ``~/.execnet/key``, made if need be.
        tls: True makes a certificate, by the program openssl; else a file that has one and its
        private key.  count: how many may be there at the same time.  options: keys of a spec for
        all of them, as in "chdir=/tmp//nice=5".  Returns "host:port//fingerprint=...", for
        ``execnet join``.  Raises ValueError for arguments that can't be, or if the group listens
        already, OSError if it can't listen there, or has no certificate.
        """
        if not self.execmodel.has_main_thread:
            raise ValueError(f"listen() needs threads, and this group has {self.execmodel.backend}")
        if count is not None and count < 1:
            raise ValueError(f"count={count} lets nobody in")
        self._prepare(_spec_of(address, options), JoinedSettings)  # an error is for the caller
        from .near import Joins

        def make(io: Endpoint, address: str) -> Gateway:
            spec = _spec_of(address, options)
            gateway = self._make_through(spec, lambda settings, model: io, JoinedSettings)
            self._tell_executors()
            return gateway

        with self._lock:
            if self._joins is not None:
                raise ValueError(f"the group listens already, at {self._joins.ticket}")
            self._end_at_exit()
            self._joins = Joins(address, key, tls, count, self.execmodel, make)
            return str(self._joins.ticket)

    def join_command(
        self, via: str | None = None, key: str | None = None, python: str = "python3"
    ) -> str:
        """Return the command that makes a worker of the group wherever a shell runs it.

        It needs a Python, 2.7 or 3.6 and later, and nothing else there; it has at most 1,500
        bytes, and is no secret.  via: host or host:port where the joiners dial, if that is not
        this machine by its own address: a relay, a forwarded port.  key: where the joiners find
        the key: a file, "env:NAME" for an environment variable, "-" for a line of stdin; None
        for the variable EXECNET_KEY, or the file given to ``listen`` if there is no such variable.
        python: the command of the interpreter.  Raises ValueError if the command would be longer,
        or the group does not listen.
        """
        joins = self._get_joins()
        return joins.ticket.through(via).command(key, joins.key_file, python)

    def wait_for(self, count: int, timeout: float | None = None) -> list[Gateway]:
        """Wait until so many workers have dialled in and are there; return their gateways.

        timeout: seconds, None for any time.  Raises ``TimeoutError``, which says how many there
        are and who was turned away, and ValueError if the group does not listen.
        """
        return self._get_joins().wait_for(count, timeout)

    def on_join(self, callback: Callable[[Gateway], object] | None) -> None:
        """Have a callback get the gateway of each worker that dials in, or has.

        It is called for one at a time, in a thread that no gateway needs.  What it raises is
        written to stderr.  None: nothing is called.  Raises ValueError if the group does not
        listen.
        """
        self._get_joins().on_join(callback)

    def _get_joins(self) -> Joins:
        joins = self._joins
        if joins is None:
            raise ValueError("the group does not listen: call its listen() first")
        return joins

    def _stop_listening(self) -> None:
        joins, self._joins = self._joins, None
        if joins is not None:
            joins.stop()

    def _disown_joins(self) -> None:
        joins, self._joins = self._joins, None
        if joins is not None:
            joins.disown()


def _spec_of(address: str, options: str) -> str:
    return f"listen={address}//{options}" if options else f"listen={address}"
