"""A process that was forked from the coordinator owns none of its gateways.

What is registered here is told in the child, before anything else runs there.  Start at
``register``.
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
