"""What a group offers for workers that dial in.

The rest is imported when a group begins to listen.  Start at ``Listening.listen``.
"""

from __future__ import annotations

from .._clock import monotonic
from .._specs import JoinedSettings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .._endpoint import Endpoint
    from .._specs import Settings
    from ..gateway import Gateway
    from ..gateway_base import ExecModel
    from .launcher import Launcher
    from .near import Joins

LAUNCHER_S = 10.0  # how long a program may take to see that its tasks have ended


class Listening:
    """The part of a group that has a door; any thread may call."""

    _joins: Joins | None = None
    _launchers: list[Launcher]  # that may not have ended
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

    def launch(
        self, command: str | Sequence[str], via: str | None = None, python: str = "python3"
    ) -> None:
        """Start a program that runs the words after its own, once or more: "srun -N4 -n64".

        These are those of ``join_command``, so that each task becomes a worker; ``wait_for``
        is to follow.  command: a string is split as a shell does.  via, python: as for
        ``join_command``.  The group listens on all networks, with ``~/.execnet/key``, if it does
        not listen yet.  Joiners find the key in the file that ``listen`` was given, or else in
        the variable EXECNET_KEY, which the program has to hand on.  The program ends with the
        group.  Raises OSError if it can't be started, and errors of ``listen``.
        """
        import shlex

        words = shlex.split(command) if isinstance(command, str) else list(command)
        if not words:
            raise ValueError("there is no command to launch")
        if self._joins is None:
            self.listen()
        joins = self._get_joins()
        joins.launch([*words, *shlex.split(self.join_command(via, joins.key_file, python))])

    def wait_for(self, count: int, timeout: float | None = None) -> list[Gateway]:
        """Wait until so many workers have dialled in and are there; return their gateways.

        timeout: seconds, None for any time.  Raises ``TimeoutError``, which says how many there
        are and who was turned away, ``BootstrapError`` as soon as a program that ``launch`` has
        started fails before so many are there, and ValueError if the group does not listen.
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
            self._launchers += joins.launchers

    def _end_launchers(self, deadline: float | None) -> None:
        """End the programs that have started joiners, which have ended."""
        until = monotonic() + LAUNCHER_S if deadline is None else deadline
        launchers, self._launchers = self._launchers, []
        if launchers:
            from .launcher import end_all

            end_all(launchers, until)

    def _disown_joins(self) -> None:
        joins, self._joins = self._joins, None
        self._launchers = []
        if joins is not None:
            joins.disown()


def _spec_of(address: str, options: str) -> str:
    return f"listen={address}//{options}" if options else f"listen={address}"
