"""What child processes of a coordinator have of it.

One that was forked owns none of its gateways: what is registered here is told in the child,
before anything else runs there.  Start at ``register``.
"""

from __future__ import annotations

import os
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Owner(Protocol):
        """Has something that a forked process must leave alone."""

        def _disown(self) -> None: ...


_owners: weakref.WeakSet[Any] = weakref.WeakSet()


def register(owner: Owner) -> None:
    """Have ``owner._disown()`` called in every process that is forked from this one."""
    _owners.add(owner)


def _disown_all() -> None:
    for owner in list(_owners):
        owner._disown()
    _owners.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)


def stderr_of_children(null: int) -> int | None:
    """Return what a child process gets as its stderr: None for ours, or ``null``.

    That need not be at 2: where it is closed, the program may have a file of its own there.
    """
    try:
        return None if os.get_inheritable(2) else null
    except OSError:
        return null
