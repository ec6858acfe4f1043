"""From one worker to another that it reaches itself: nothing passes through the coordinator.

The source runs ``RSync``, to a gateway that it makes; its modules are forwarded to it where it has
none.  Start at ``direct``; ``serve`` runs there.
"""

from __future__ import annotations

import os
import time

from ..gateway_base import ExecnetError
from .reports import Reports
from .result import RSyncError, TargetResult

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..gateway import Gateway
    from ..gateway_base import Channel
    from .far.wire import Rule

_CODE = """
from execnet._rsync import direct
direct.serve(channel)
"""
_PYTHON = (3, 10)  # what makes gateways


def direct(
    source: Gateway, path: bytes, spec: str, dest: bytes, wishes: dict[str, object],
    rules: list[Rule],
    on_sending: Callable[[str], object],
) -> TargetResult:  # fmt: skip
    """Have a worker copy a path of its own to another one, which it starts; return the result.

    spec: of the other one, as the source reaches it.  wishes: options of ``RSync.add_target``.
    on_sending: called with the path of each file that is sent.  Raises ``RSyncError`` if the source
    cannot make gateways, does not reach the other, or could not copy.
    """
    place = f"{source.id}:{os.fsdecode(path)}"
    if source._rinfo().version_info[:2] < _PYTHON:
        wanted = ".".join(map(str, _PYTHON))
        raise RSyncError(f"{place}: only Python {wanted} or later can start {spec!r} itself")
    source.forward_imports(["execnet"])
    result = TargetResult(source, f"{spec}:{os.fsdecode(dest)}")
    reports = Reports(place, result, on_sending, bool(wishes["dry_run"]), rules, is_alone=True)
    started = time.monotonic()
    channel = source.remote_exec(_CODE)
    try:
        channel.send((path, spec, dest, wishes, rules))
        for message in channel:
            reports.take(message)
        channel.waitclose()
        reports.end()
    finally:
        channel.close()
    result.seconds = time.monotonic() - started
    if reports.failed is not None:
        result.error = RSyncError(reports.failed)
    return result


def serve(channel: Channel) -> None:
    """Copy as the first item says, and tell what is done."""
    # only the source needs these, which are forwarded one by one
    from ..multi import Group
    from ..rsync import RSync
    from .far import wire

    path, spec, dest, wishes, rules = channel.receive()

    def tell(name: str, *values: object) -> None:
        channel.send((wire.TOLD, name, values))

    class Telling(RSync):
        _keeps_apart = True

        def _report_send_file(self, gateway: Gateway, modified_rel_path: str) -> None:
            tell("sending", [os.fsencode(modified_rel_path)])

    group = Group()
    rsync = Telling(os.path.expanduser(path), verbose=False, rules=rules)
    try:
        rsync.add_target(group.makegateway(spec), dest, expanduser=True, **wishes)
        rsync.send()
    except (ExecnetError, EOFError, OSError) as exc:
        reason = (isinstance(exc, OSError) and exc.strerror) or str(exc)
        tell("failed", reason.encode("utf-8", "backslashreplace")[: wire.TEXT_MAX])
    finally:
        group.terminate(5)
    if rsync.result is not None:
        _tell_result(rsync.result.targets[0], tell)


def _tell_result(result: TargetResult, tell: Callable[..., object]) -> None:
    tell("sent", result.bytes_sent)
    for skipped in result.skipped:
        tell("skipped", os.fsencode(skipped.path), os.fsencode(skipped.reason))
    planned = [os.fsencode(path) for path in result.planned]
    deleted = [os.fsencode(path) for path in result.planned_deletions]
    if planned or deleted:
        tell("planned", planned, deleted)
    refused = [result.refused.get(name, 0) for name in ("times", "modes", "owners", "links")]
    tell("ended", result.unchanged, result.settled, result.deleted, *refused)
