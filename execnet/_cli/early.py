"""Ctrl-C before ``session.supervise`` handles signals.

Python prints and ignores an exception in a callback, and each import ends with one: so a
``KeyboardInterrupt`` may be lost while the command is being loaded.  Start at ``note_interrupts``.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # ``signal`` takes long to import

noted: list[int] = []  # one for each time


def note_interrupts() -> None:
    """Have Ctrl-C noted before it raises, unless it is ignored or has another handler."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        try:  # noqa: SIM105 - to import ``contextlib`` takes long
            _signal.signal(_signal.SIGINT, _note_and_raise)
        except ValueError:  # this is not the main thread, which alone is interrupted
            pass


def _note_and_raise(number: int, frame: object) -> None:
    noted.append(number)
    raise KeyboardInterrupt
