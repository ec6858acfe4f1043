"""What happens, told to the loggers ``execnet.gateway``, ``execnet.rsync`` and others.

Silent, and free, in a program that does not use ``logging``.  Start at ``note``.
"""

from __future__ import annotations

import sys
from _thread import get_ident
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

DEBUG, INFO, WARNING = 10, 20, 30


def logger_of(topic: str) -> logging.Logger | None:
    """Return the logger ``execnet.TOPIC``; None if the program has not imported ``logging``."""
    module = sys.modules.get("logging")
    if not hasattr(module, "NullHandler"):  # it may be about to be imported
        return None
    root: logging.Logger = module.getLogger("execnet")  # type: ignore[union-attr]
    if not root.handlers:  # else Python would print warnings where nobody asked for any
        root.addHandler(module.NullHandler())  # type: ignore[union-attr]
    return root.getChild(topic)


def note(
    topic: str, level: int, describe: Callable[[], object], gateway: str | None = None
) -> None:
    """Tell a logger; the record's ``gateway`` is the id of the gateway that it is about.

    describe: returns the text, and is called only if somebody listens.  Any thread may call, and
    nothing is raised: handlers are the program's.
    """
    with suppress(Exception):
        logger = logger_of(topic)
        if logger is not None and logger.isEnabledFor(level):
            threads: dict[int, object] = getattr(sys.modules["threading"], "_active", {})
            is_known = get_ident() in threads
            try:
                logger.log(level, "%s", describe(), extra={"gateway": gateway})
            finally:
                if not is_known:  # a record asks for the thread's name, and one is made up for good
                    threads.pop(get_ident(), None)
