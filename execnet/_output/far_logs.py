"""The worker's half of ``logging=``: sends what is logged there over a channel.

This file is shipped; it keeps to what Python 2.7 and today's Python both accept.  An item is a
dict of what a record has, as numbers and text.  Start at ``serve``.
"""

from __future__ import annotations

import logging
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..gateway_base import Channel

TEXT_CHARACTERS = 1 << 16  # of a message or a traceback; the rest is cut off
NUMBERS = "levelno", "lineno", "process", "created"
TEXTS = "name", "pathname", "funcName", "threadName", "levelname"


class Handler(logging.Handler):
    """Sends log records, but not those of a child process that was forked here."""

    def __init__(self, level: int, channel: Channel) -> None:
        logging.Handler.__init__(self, level)
        self._channel = channel
        self._pid = os.getpid()
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record; any thread may log."""
        if os.getpid() != self._pid:
            return
        try:
            known = vars(record)
            item = {name: known.get(name) for name in NUMBERS}
            item.update((name, _text(known.get(name, ""))) for name in TEXTS)
            item["message"] = _text(record.getMessage())
            if record.exc_info:
                item["exc_text"] = _text(self._formatter.formatException(record.exc_info))
            self._channel.send(item)
        except (EnvironmentError, EOFError):  # the coordinator is gone
            pass
        except Exception:  # for example, the record can't be formatted
            self.handleError(record)


def _text(value: object) -> str:
    text: bytes | str = value if isinstance(value, (bytes, type(u""))) else str(value)
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return text[:TEXT_CHARACTERS]


def serve(channel: object, records: Channel, level: int) -> None:
    """Send records of at least this level over the channel ``records`` from now on."""
    root = logging.getLogger()
    root.addHandler(Handler(level, records))
    if root.level > level or not root.level:
        root.setLevel(level)
