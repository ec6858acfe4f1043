"""Transports: a spec becomes the command whose stdin and stdout reach an interpreter.

One table of rows, ``TRANSPORTS``; other distributions add theirs through entry points.  Nothing
is started here.  Start at ``command``.
"""

from __future__ import annotations

import os
import sys

from .._errors import BootstrapError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.metadata import EntryPoint
    from typing import Any

    from ..xspec import XSpec

ENTRY_POINTS = "execnet.transports"
popen_bootstrapline = "import sys;exec(eval(sys.stdin.readline()))"

is_freeze_supported = False  # whether this program has called ``freeze_support``

CONNECTED = "socket", "socketservice", "listen"  # reached by a connection, not by a command
# Specs of these may hold keys that are their program's own, as they always could.
OLD_TYPES = frozenset(["popen", "ssh", "vagrant_ssh", "socket"])


class Transport:
    """A row: how the spec key ``key`` reaches an interpreter.

    make: returns the command for a spec and the words that start the interpreter, which come
    last in it.  options: further spec keys that it understands; those of the rows below are in
    the table of ``_specs``.  captures_stderr: whether the last of its
    stderr is kept for errors, and the rest passed on.  is_local: whether the interpreter runs
    on the machine that runs the command.  may_be_bare: whether the key needs no value.
    serves_many: whether a worker that it has reached may start others in the same place, so that a
    connection can be kept and shared.
    """

    def __init__(
        self,
        key: str,
        make: Callable[[XSpec, list[str]], list[str]],
        options: tuple[str, ...] = (),
        captures_stderr: bool = True,
        is_local: bool = False,
        may_be_bare: bool = False,
        serves_many: bool = False,
    ) -> None:
        self.key = key
        self.make = make
        self.options = options
        self.captures_stderr = captures_stderr
        self.is_local = is_local
        self.may_be_bare = may_be_bare
        self.serves_many = serves_many


class Command(list[str]):
    """The words of a command, with what is known of its transport.

    ``env`` and ``folder`` are what it is run with and in, None for this process's.
    """

    env: dict[str, str] | None = None
    folder: str | None = None

    def __init__(
        self,
        words: list[str],
        captures_stderr: bool = False,
        inherits_stdout: bool = False,
        is_remote: bool = False,
    ) -> None:
        super().__init__(words)
        self.captures_stderr = captures_stderr
        self.inherits_stdout = inherits_stdout
        self.is_remote = is_remote


def shell_split_path(path: str) -> list[str]:
    """Split a command as a shell does; a backslash stays one on Windows."""
    import shlex

    if sys.platform.startswith("win"):
        path = path.replace("\\", "\\\\")
    return shlex.split(path)


def split_place(words: str) -> list[str]:
    """Split what a spec says to ssh as a shell does, but for the backslash of ``DOMAIN\\user``.

    Outside of quotes one before a letter, a digit or "_" stays: no shell needs it there.
    """
    import re

    quoted_or_escaped = r"""'[^']*'|"(?:\\.|[^"\\])*"|\\\W"""
    kept = re.compile(rf"({quoted_or_escaped})|\\(?=\w)", re.DOTALL)
    if not sys.platform.startswith("win"):  # where each of them stays
        words = kept.sub(lambda found: found[1] or r"\\", words)
    return shell_split_path(words)


# ---------------------------------------------------------------- the table


def _popen(spec: XSpec, words: list[str]) -> list[str]:
    return words


def _ssh(spec: XSpec, words: list[str]) -> list[str]:
    from .ssh import for_shell, options

    place = ssh_place(spec)
    return ["ssh", *options(spec, place), *place, for_shell(words)]


def ssh_place(spec: XSpec) -> list[str]:
    """Return what a spec says to ssh: its words, or options and, after "--", the host."""
    if isinstance(spec.ssh, str):
        return split_place(spec.ssh)
    words = shell_split_path(spec.options) if spec.options else []
    words += ["-l", spec.user] if spec.user else []
    words += ["-p", spec.port] if spec.port else []
    return [*words, "--", spec.host]


def _vagrant_ssh(spec: XSpec, words: list[str]) -> list[str]:
    from .ssh import for_shell, options

    machine = [spec.vagrant_ssh]
    return ["vagrant", "ssh", *machine, "--", *options(spec, machine), for_shell(words)]


def _sudo(spec: XSpec, words: list[str]) -> list[str]:
    if spec.sudo_askpass:
        asking = ["env", f"SUDO_ASKPASS={spec.sudo_askpass}", "sudo", "-A"]
        return [*asking, "-u", spec.sudo, "--", *words]
    # Without -n it would ask for a password in the middle of the protocol.
    return ["sudo", "-n", "-u", spec.sudo, "--", *words]


def _docker(spec: XSpec, words: list[str]) -> list[str]:
    return ["docker", "exec", "-i", *shell_split_path(spec.docker), *words]


def _podman(spec: XSpec, words: list[str]) -> list[str]:
    return ["podman", "exec", "-i", *shell_split_path(spec.podman), *words]


def _kubectl(spec: XSpec, words: list[str]) -> list[str]:
    options = ["-n", spec.namespace] if spec.namespace else []
    options += ["-c", spec.container] if spec.container else []
    return ["kubectl", "exec", "-i", *shell_split_path(spec.kubectl), *options, "--", *words]


def _lxc(spec: XSpec, words: list[str]) -> list[str]:
    """Use the client of LXD; that of Incus takes the same words under another name."""
    mode = "--mode=non-interactive"  # no terminal, which would change the bytes
    return ["lxc", "exec", mode, *shell_split_path(spec.lxc), "--", *words]


def _srun(spec: XSpec, words: list[str]) -> list[str]:
    """Run one task; unbuffered, as Slurm else keeps output until a line is complete."""
    options = [] if spec.srun is True else shell_split_path(spec.srun)
    return ["srun", "--ntasks=1", "--unbuffered", *options, *words]


_ROWS = [
    Transport("popen", _popen, captures_stderr=False, is_local=True, may_be_bare=True),
    Transport("ssh", _ssh, serves_many=True),
    Transport("vagrant_ssh", _vagrant_ssh, serves_many=True),
    Transport("sudo", _sudo, is_local=True),
    Transport("docker", _docker, serves_many=True),
    Transport("podman", _podman, serves_many=True),
    Transport("kubectl", _kubectl, serves_many=True),
    Transport("lxc", _lxc, serves_many=True),
    Transport("srun", _srun, may_be_bare=True),
]
TRANSPORTS = {row.key: row for row in _ROWS}


# ---------------------------------------------------------------- looking up


def types_of(spec: XSpec) -> list[str]:
    """Return the keys of a spec that say how its worker is reached.

    The installed entry points are looked at only when no known key is there.
    """
    given = {key for key, value in vars(spec).items() if value not in (None, False)}
    types = [key for key in (*TRANSPORTS, *CONNECTED) if key in given]
    return types or [name for name in _plugins() if name in given]


def known_types() -> list[str]:
    """Return all keys that say how a worker is reached, those of entry points included."""
    return sorted({*TRANSPORTS, *CONNECTED, *_plugins()})


def transport_of(spec: XSpec) -> Transport:
    """Return the row of a spec that has one; ValueError for a broken entry point."""
    for key in types_of(spec):
        if key not in CONNECTED:
            return row_of(spec, key)
    raise ValueError(f"no command reaches spec {spec.shown()!r}")


def row_of(spec: XSpec, key: str) -> Transport:
    """Return the row of a spec whose type is known; errors as for ``transport_of``."""
    return TRANSPORTS.get(key) or _load(spec, key)


def _plugins() -> dict[str, EntryPoint]:
    """Return {spec key: entry point}; those of the table can't be replaced."""
    from importlib.metadata import entry_points

    points = entry_points(group=ENTRY_POINTS)
    return {point.name: point for point in points if not point.name.startswith("_")}


def _load(spec: XSpec, key: str) -> Transport:
    """Return the row that a distribution offers.

    Its function gets the spec and the words that start an interpreter, and returns the
    command; it may have the attributes ``options``, ``captures_stderr``, ``is_local``,
    ``may_be_bare`` and ``serves_many``, as in ``Transport``.
    """
    point = _plugins()[key]
    function: Any

    def make(spec: XSpec, words: list[str]) -> list[str]:
        try:
            return [os.fspath(word) for word in function(spec, words)]
        except Exception as exc:
            raise _broken(spec, point, exc) from exc

    try:
        function = point.load()
        if not callable(function):
            raise TypeError(f"{function!r} is no function")
    except Exception as exc:
        raise _broken(spec, point, exc) from exc
    names = "options", "captures_stderr", "is_local", "may_be_bare", "serves_many"
    given = {name: getattr(function, name) for name in names if hasattr(function, name)}
    return Transport(key, make, **given)


def _broken(spec: XSpec, point: EntryPoint, exc: Exception) -> ValueError:
    home = f"{point.value} of {point.dist.name}" if point.dist else point.value
    return ValueError(
        f"spec {spec.shown()!r}: transport {point.name!r} ({home}) failed: "
        f"{type(exc).__name__}: {exc}"
    )


# ---------------------------------------------------------------- the command


def command(spec: XSpec, executable: str | None = None, row: Transport | None = None) -> Command:
    """Return the command of a spec.

    executable: the interpreter of a spec that names none, if the worker runs on the machine
    that runs the command; None for this program's.  row: its transport, where that is known.
    Raises ValueError for a broken entry point,
    ``BootstrapError`` in a frozen program that can't be a worker.
    """
    row = row or transport_of(spec)
    executable = executable or sys.executable
    words = row.make(spec, interpreter_words(spec, row, executable))
    if row.key in ("ssh", "vagrant_ssh"):
        from .ssh import without_compression, without_terminal

        words = without_terminal(words)
        if spec.ssh_compression != "yes":
            words = without_compression(words)
    return Command(words, row.captures_stderr, spec.output == "inherit", not row.is_local)


def can_inherit(spec: XSpec) -> bool:
    """Whether the worker of a spec can be handed our stdout."""
    return bool(spec.popen and not (spec.via or spec.forkserver) and sys.platform != "win32")


def address_of(spec: XSpec, row: Transport) -> str | None:
    """Return what a spec calls the place that its worker runs at; None for this machine."""
    value = vars(spec)[row.key]
    if row.key == "ssh" and value is True:
        return str(spec.host)
    return value if isinstance(value, str) and not row.is_local else None


def interpreter_words(spec: XSpec, row: Transport, executable: str) -> list[str]:
    """Return the words that start the interpreter, where the transport leads to."""
    flags = ["-u", "-B"] if spec.dont_write_bytecode else ["-u"]
    if spec.python == "auto":
        from .pythons import search_script

        start = f'exec "$p" {" ".join(flags)} -c "{popen_bootstrapline}"'
        return ["sh", "-c", search_script("auto", start)]
    if spec.python:
        return [*shell_split_path(spec.python), *flags, "-c", popen_bootstrapline]
    # Then it is this program, and no interpreter.
    frozen = getattr(sys, "frozen", False) and executable == sys.executable
    if row.key == "popen":
        if frozen and not is_freeze_supported:  # it would start itself again and again
            raise BootstrapError(
                "this program is frozen, so it has to be able to be a worker: call "
                "execnet.freeze_support() first thing in its main module, before any gateway"
            )
        # Where the environment says so, the worker hears of it anyway.
        is_safe = (
            sys.version_info >= (3, 11)
            and sys.flags.safe_path
            and not os.environ.get("PYTHONSAFEPATH")
        )
        if is_safe and executable == sys.executable and not frozen:
            flags.append("-P")
        return [executable, *flags, "-c", popen_bootstrapline]
    start = f'{" ".join(flags)} -c "{popen_bootstrapline}"'
    script = f"command -v python3 >/dev/null 2>&1&&exec python3 {start};exec python {start}"
    if row.is_local and not frozen:
        import shlex

        # Another user may not be allowed to run it.
        own = shlex.quote(executable)
        script = f"[ -x {own} ]&&exec {own} {start};{script}"
    return ["sh", "-c", script]
