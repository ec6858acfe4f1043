"""The methods of a group for workers that dial in.

The rest is imported when a group starts to listen.  Start at ``Listening.listen``.
"""

from __future__ import annotations

from contextlib import nullcontext

from .._clock import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .._specs import Settings
    from ..gateway import Gateway
    from ..gateway_base import ExecModel, LockLike
    from ..gateway_bootstrap import Through
    from ..xspec import XSpec
    from .launcher import Launcher
    from .near import Joins
    from .wanted import Wanted

THREADS = "thread", "main_thread_only"  # execution models of workers that can lead to others
LAUNCHER_S = 10.0  # how long a launcher may take to notice that its tasks have ended


class Listening:
    """The part of a group that listens; any thread may call."""

    _joins: Joins | None = None
    _launchers: list[Launcher]  # those that may not have ended
    _doors: dict[object, Wanted]  # of ``listen=`` specs, by address
    _closing: list[Joins]  # to which only those come back that have joined before
    _lock: LockLike  # attributes of a group
    _end_at_exit: Callable[[], None]
    _tell_executors: Callable[[], None]

    if TYPE_CHECKING:

        @property
        def execmodel(self) -> ExecModel: ...
        def _prepare(self, spec: XSpec | str) -> Settings: ...
        def _make_through(self, spec: XSpec | str, through: Through) -> Gateway: ...
        def _start(self, settings: Settings, find: Any, through: Through | None) -> Gateway: ...

    def _check_wishes(
        self, address: str, count: int | None, options: str, fanout: int | None
    ) -> Settings:
        """Return what the options mean; raises the errors of ``listen`` for its arguments."""
        if not self.execmodel.has_main_thread:
            raise ValueError(f"listen() needs threads, and this group has {self.execmodel.backend}")
        if count is not None and count < 1:
            raise ValueError(f"count={count} admits nobody")
        settings = self._prepare(_spec_of(address, options))
        spec = settings.spec
        for name in "id", "key", "certificate":
            if vars(spec).get(name) is not None:
                raise ValueError(f"options={options!r}: {name}= can't be for all that join")
        if fanout is not None:
            from .._tree.plan import check_fanout

            check_fanout(fanout)
            if spec.execmodel not in THREADS:
                raise ValueError(f"fanout= needs threads in workers, which have {spec.execmodel}")
            if settings.resume_s is not None:
                raise ValueError("fanout= is not with resume=: joiners come back to this program")
        if settings.resume_s is not None:
            from .._resume.near import check_models

            check_models(settings, self.execmodel)
        return settings

    def listen(
        self,
        address: str = "0.0.0.0:0",
        key: str | bytes | None = None,
        tls: bool | str = True,
        count: int | None = None,
        options: str = "",
        fanout: int | None = None,
    ) -> str:
        """Let workers dial in: any process that runs ``join_command()`` becomes one.

        address: host:port or [IPv6 address]:port; port 0 takes a free one.  key: the file with the
        key that joiners must have, or its 32 bytes; None for ``~/.execnet/key``, made if
        necessary.  tls: True makes a certificate with the program openssl; otherwise a file with a
        certificate and its private key.  count: how many may be connected at the same time.
        options: keys of a spec for all of them, as in "chdir=/tmp//nice=5".  fanout: how many are
        reached from here, and at most from each worker: further joiners are told to dial to those
        that are there, and are reached ``via`` them, as in ``tree``; None reaches all from here.
        Returns "host:port//fingerprint=...", for ``execnet join``.  Raises ValueError for bad
        arguments, or if the group is listening already, OSError if it can't listen there, or has no
        certificate.
        """
        resumes = self._check_wishes(address, count, options, fanout).resume_s is not None
        from .near import Joins

        def make(through: Through, address: str) -> Gateway:
            gateway = self._make_through(_spec_of(address, options), through)
            self._tell_executors()
            return gateway

        with self._lock:
            if self._joins is not None:
                raise ValueError(f"the group listens already, at {self._joins.ticket}")
            self._end_at_exit()
            place = make, resumes
            self._joins = Joins(
                address, key, tls, count, self.execmodel, lambda: nullcontext(place), fanout
            )
            return str(self._joins.ticket)

    def join_command(
        self, via: str | None = None, key: str | None = None, python: str = "python3"
    ) -> str:
        """Return a command that becomes a worker of the group wherever a shell runs it.

        It needs only a Python there, 2.7 or 3.6 and later; it has at most 1,500 bytes, and is not
        secret.  via: host or host:port that the joiners dial, if that is not this machine's own
        address: a relay, a forwarded port.  key: where the joiners find the key: a file, "env:NAME"
        for an environment variable, "-" for a line of stdin; None for the variable EXECNET_KEY, or
        the file given to ``listen`` if it is not set.  python: the command of the interpreter.
        Raises ValueError if the command would be longer, or the group is not listening.
        """
        joins = self._get_joins()
        return joins.ticket.through(via).command(key, joins.key_file, python)

    def launch(
        self, command: str | Sequence[str], via: str | None = None, python: str = "python3"
    ) -> None:
        """Start a program that runs a command, once or more, such as "srun -N4 -n64".

        The words of ``join_command`` are appended, so that each task becomes a worker; call
        ``wait_for`` next.  command: a string is split as in a shell.  via, python: as for
        ``join_command``.  If the group is not listening yet, it starts to listen on all networks,
        with ``~/.execnet/key``.  Joiners find the key in the file that ``listen`` was given, or
        else in the variable EXECNET_KEY, which the program has to pass on.  The program ends with
        the group.  Raises OSError if it can't be started, and the errors of ``listen``.
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
        """Wait until this many workers have dialled in and are alive; return their gateways.

        timeout: seconds, None to wait for ever.  Raises ``TimeoutError``, which says how many there
        are and who was turned away, ``BootstrapError`` as soon as a program started by ``launch``
        fails before that, and ValueError if the group is not listening.
        """
        return self._get_joins().wait_for(count, timeout, self._is_wanted)

    def on_join(self, callback: Callable[[Gateway], object] | None) -> None:
        """Call a callback with the gateway of each worker that dials in, or has done so.

        It is called for one at a time, in a thread that no gateway needs.  Its errors are written
        to stderr.  None removes the callback.  Raises ValueError if the group is not listening.
        """
        self._get_joins().on_join(callback)

    def _take_joiner(self, settings: Settings) -> Gateway:
        """Wait for the next worker that dials in where a ``listen=`` spec says."""
        from .wanted import Wanted

        def begin(settings: Settings, through: Through) -> Gateway:
            return self._start(settings, None, through)

        with self._lock:
            door = self._doors.get(settings.address)
            if door is None:
                self._end_at_exit()
                door = self._doors[settings.address] = Wanted(settings, self.execmodel, begin)
        return door.take(settings, self._is_wanted)

    def _is_wanted(self) -> bool:
        """Whether what the calling thread waits for is still wanted."""
        return True

    def _get_joins(self) -> Joins:
        joins = self._joins
        if joins is None:
            raise ValueError("the group is not listening: call its listen() first")
        return joins

    def _stop_listening(self) -> None:
        joins, self._joins = self._joins, None
        if joins is not None:
            joins.stop()
            self._launchers += joins.launchers
        doors, self._doors = self._doors, {}
        for door in doors.values():
            door.stop()
        self._closing += [one for one in (joins, *(door.joins for door in doors.values())) if one]

    def _end_launchers(self, deadline: float | None) -> None:
        """Close all doors and end the programs that started joiners, after the joiners."""
        while self._closing:
            self._closing.pop().close()
        until = monotonic() + LAUNCHER_S if deadline is None else deadline
        launchers, self._launchers = self._launchers, []
        if launchers:
            from .launcher import end_all

            end_all(launchers, until)

    def _disown_joins(self) -> None:
        joins, self._joins = self._joins, None
        doors, self._doors = self._doors, {}
        closing, self._closing = self._closing, []
        self._launchers = []
        for one in [joins, *(door.joins for door in doors.values()), *closing]:
            if one is not None:
                one.disown()


def _spec_of(address: str, options: str) -> str:
    return f"listen={address}//{options}" if options else f"listen={address}"
