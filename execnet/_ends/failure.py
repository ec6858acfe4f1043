"""The error for a worker that could not be started.

What happened and what to do about it comes first, then the output from there; the command, which
may be long, comes last.  Start at ``failure_of``.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

from .._errors import BootstrapError, HostNotFound, indented, with_command
from .._transports.table import ssh_place
from ..gateway_base import printable
from . import limits
from .death import describe_exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._endpoint import Endpoint
    from .._specs import Settings
    from ..xspec import XSpec
    from .handshake import Handshake

NOISE_SHOWN = 2000  # bytes of what arrived instead of an answer
SSH_FAILED = 255  # its exit status if ssh itself failed
NOT_FOUND = 127  # what shells say about a missing program
TCP_STATES = {"01": "ESTABLISHED", "02": "SYN_SENT"}  # those that matter, by /proc/net/tcp

_SILENT_HOST = "the host does not answer; check its name, the port and the network in between"

# What ssh says, and what helps; the first that matches is used.  {host} is the last of the words
# that the spec has for ssh.
_ADVICE = [
    (
        r"Could not resolve hostname \S+:\d+:",
        "ssh takes no port after a host's name; write ssh=-p {port} {name}",
    ),
    (
        r"Could not resolve hostname",
        "there is no host of this name; it may be misspelt, or be in a configuration that "
        "ssh_config= hides",
    ),
    (r"Connection refused", "no ssh server listens there; check the host and the port"),
    (r"timed out|No route to host|Network is unreachable", _SILENT_HOST),
    (
        r"IDENTIFICATION HAS CHANGED|differs from the key",
        "the host has another key than known_hosts says; if that is expected, remove "
        "the old one with ssh-keygen -R",
    ),
    (
        r"Host key verification failed",
        "the host's key is not known; log in once by hand (ssh {host}), or put the key into "
        "known_hosts",
    ),
    (
        r"Permission denied \(",
        "the host accepts none of the keys that it was offered, and got no password; "
        "ssh -v {host} shows which keys",
    ),
    (
        r"remote command",
        "the ssh configuration has a RemoteCommand for this host; write "
        "ssh=-o RemoteCommand=none {host}",
    ),
    (
        r"kex_exchange_identification|ssh_exchange_identification|banner exchange",
        "the host accepts no logins now; it limits them (MaxStartups), or bars this machine",
    ),
]


def tcp_states(pid: int) -> set[str]:
    """Return the states of the TCP sockets of a process and its children, as ``TCP_STATES`` names.

    Known only on Linux; there are none elsewhere.
    """
    pids, states = [pid], set()
    with suppress(OSError), open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        pids += map(int, file.read().split())
    for one in pids:
        with suppress(OSError):
            fds = f"/proc/{one}/fd"
            sockets = {os.readlink(f"{fds}/{name}") for name in os.listdir(fds)}
            for table in "tcp", "tcp6":
                with open(f"/proc/{one}/net/{table}", encoding="ascii") as lines:
                    rows = [line.split() for line in lines]
                states |= {row[3] for row in rows[1:] if f"socket:[{row[9]}]" in sockets}
    return {TCP_STATES[state] for state in states & set(TCP_STATES)}


def failure_of(
    io: Endpoint,
    settings: Settings,
    handshake: Handshake,
    error: BaseException | None,
    in_time: bool,
    status: int | None,
    is_connecting: bool,
) -> BootstrapError:
    """Return the error for a worker that was abandoned.

    error: the end of its stream.  in_time: whether its start ended by itself.  status: the exit
    status of its process if that ended by itself as well.  is_connecting: whether the host had not
    answered at all by then.
    """
    spec, timeout_s = settings.spec, settings.connect_timeout_s
    args, noise, stderr = io.args, handshake.noise, io.stderr_tail()
    by_ssh = bool(spec.ssh or spec.vagrant_ssh)
    unreachable = is_connecting or (by_ssh and status == SSH_FAILED)
    problem = str(handshake.hello.get("error", "")).strip()
    if problem:
        cause = _why_unprepared(settings, problem)
    elif is_connecting:
        cause = f"{_SILENT_HOST} ({timeout_s or 0:g} s)"
    elif not in_time:
        cause = _about_time(spec, timeout_s)
    elif unreachable:
        cause = _advice(spec, stderr) or f"{describe_exit(status)} of {args[0]}"
    else:
        reason = str(error).partition("\n")[0].removeprefix(f"worker {settings.id} died, ")
        cause = _why_ended(reason, status, stderr)
    text = f"{settings.id} could not be started: {cause}"
    text += "" if problem else limits.told(spec)
    if stderr:
        text += f"\nits last words on stderr:\n{stderr}"
    if noise:
        text += f"\nit said: {noise[-NOISE_SHOWN:].decode('utf-8', 'replace')}"
    kind = HostNotFound if unreachable else BootstrapError
    return kind(with_command(indented(printable(text)), args), args, status, stderr, noise)


def _why_unprepared(settings: Settings, problem: str) -> str:
    if settings.attach is not None:
        return f"the service {settings.attach} could not be used: {problem}"
    return f"the worker could not be prepared: {_told_by(settings.spec, problem)}"


def _told_by(spec: XSpec, problem: str) -> str:
    """Return what a worker's traceback says, and the key of the spec that it is about."""
    last = problem.splitlines()[-1]
    if spec.execmodel in ("gevent", "eventlet") and "No module named" in last:
        return f"execmodel={spec.execmodel} needs {spec.execmodel} to be installed there ({last})"
    limit = re.match("ValueError: (memory|cpus|limits)=(.*)", last)
    if limit:
        given = {"memory": f"memory={spec.memory}", "cpus": f"cpus={spec.cpus}"}
        return given.get(limit[1], limits.shown(spec)) + limit[2]
    path = re.search(r"'(.+)'$", last)
    if spec.chdir and path and spec.chdir.startswith(path[1]):
        return f"chdir={spec.chdir} is not a folder that it can enter or make ({last})"
    return f"{last}\n{problem}"


def _about_time(spec: XSpec, timeout_s: float | None) -> str:
    text = f"no answer in time ({timeout_s or 0:g} s); a longer connect_timeout= helps a slow host"
    if spec.ssh:
        place = spec.ssh if isinstance(spec.ssh, str) else " ".join(ssh_place(spec))
        text += f", and ssh {place} true shows whether ssh asks a question"
    return text


def _advice(spec: XSpec, stderr: str) -> str:
    place = ssh_place(spec) if spec.ssh else [spec.vagrant_ssh]
    host = place[-1]
    name, _, port = host.rpartition(":")
    for pattern, advice in _ADVICE:
        if re.search(pattern, stderr):
            return advice.format(host=host, name=name, port=port)
    return ""


def _why_ended(reason: str, status: int | None, stderr: str) -> str:
    if status == NOT_FOUND:
        return f"there is no such program there; python= says which interpreter to use ({reason})"
    if "SyntaxError" in stderr:
        return f"what python= names is not a Python, or is too old ({reason})"
    return reason
