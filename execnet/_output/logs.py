"""``logging=INFO``: the log records of workers come to the loggers of this process.

The worker's half is ``_output.far_logs``, which is sent to it.  Start at ``forward_wanted``.
"""

from __future__ import annotations

from contextlib import suppress

from .._clock import monotonic
from .._errors import BootstrapError, indented
from .._log import logger_of
from ..gateway_base import RemoteError, printable
from . import far_logs, near

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from ..gateway import Gateway
    from .near import Output

TOPIC = "remote"
_NUMBERS = {"levelno": int, "lineno": int, "process": int, "created": float}


def forward_wanted(
    get_output: Callable[[], Output],
    gateways: list[Gateway],
    deadlines: Mapping[str, float | None],
) -> None:
    """Make workers send their lines and their log records, as their specs say.

    get_output: returns where lines go.  deadlines, the return and errors are as below.
    """
    lines = [gateway for gateway in gateways if gateway.settings.output == "forward"]
    if lines:
        near.forward_all(get_output(), lines, deadlines)
    records = [gateway for gateway in gateways if gateway.settings.logging_level is not None]
    if records:
        forward_all(records, deadlines)


def forward_all(gateways: Iterable[Gateway], deadlines: Mapping[str, float | None]) -> None:
    """Make workers send what is logged there; returns when all of them do.

    deadlines: by the gateways' ids, the ``time.monotonic()`` by which each must do so.
    Raises ``BootstrapError`` for one that can't.
    """
    import logging  # noqa: F401 - from now on there is somebody who listens

    try:
        asked = []
        for gateway in gateways:
            records = gateway.newchannel_as((True, False))
            arguments = {"records": records, "level": gateway.settings.logging_level}
            asked.append((gateway, near.send_code(gateway, far_logs, arguments)))
            records.setcallback(_receiver_of(gateway.id))
        for gateway, code in asked:
            deadline = deadlines[gateway.id]
            code.waitclose(None if deadline is None else deadline - monotonic())
    except (RemoteError, OSError, EOFError) as exc:
        raise BootstrapError(f"what workers log can't be forwarded: {exc}") from exc


def _receiver_of(id: str) -> Callable[[object], object]:
    def receive(item: Any) -> None:  # in the receiver thread
        logger = logger_of(TOPIC)
        with suppress(Exception):  # handlers are the program's, and the item is a worker's
            record = _record_of(item, id)
            if logger is not None and logger.isEnabledFor(record.levelno):
                logger.handle(record)

    return receive


def _record_of(item: dict[str, object], gateway: str) -> logging.LogRecord:
    """Return a record as it was in the worker; raises whatever a malformed item leads to."""
    import logging

    found: dict[str, object] = {name: kind(item[name]) for name, kind in _NUMBERS.items()}
    for name in far_logs.TEXTS:
        found[name] = printable(str(item[name]))
    if "exc_text" in item:
        found["exc_text"] = indented(printable(str(item["exc_text"])))
    record = logging.makeLogRecord(found)
    record.msecs = record.created % 1 * 1000
    vars(record).update(msg=indented(printable(str(item["message"]))), gateway=gateway)
    return record
