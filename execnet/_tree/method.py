"""``tree`` of groups: a method of a group, and of the class, which makes a group first.

Start at ``tree``.
"""

from __future__ import annotations

from types import MethodType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol, TypeVar

    from .._specs import Settings
    from ..gateway import Gateway
    from ..xspec import XSpec

    class Grove(Protocol):
        """What it needs from a group."""

        def _make_all(
            self,
            specs: Iterable[XSpec | str | None],
            arrange: Callable[[list[Settings]], list[XSpec]] | None = None,
        ) -> list[Gateway]: ...
        def terminate(self, timeout: float | None = None) -> None: ...

    Group = TypeVar("Group", bound=Grove)
    GroupOut = TypeVar("GroupOut", bound=Grove, covariant=True)

    class OfGroup(Protocol):
        """The method of a group."""

        def __call__(
            self, specs: Iterable[XSpec | str | None], fanout: int = 16
        ) -> list[Gateway]: ...

    class OfClass(Protocol[GroupOut]):
        """The method of the class."""

        def __call__(self, specs: Iterable[XSpec | str | None], fanout: int = 16) -> GroupOut: ...


def bound(group: Grove | None, kind: object) -> MethodType:
    """Return the method of a group; of the class, if there is none."""
    return MethodType(of_class, kind) if group is None else MethodType(tree, group)


def tree(group: Grove, specs: Iterable[XSpec | str | None], fanout: int = 16) -> list[Gateway]:
    """Start workers as a tree, and return their gateways in the order of the specs.

    The first of them are reached from here, the next ones ``via`` those, and so on.  What several
    need, such as the source or a tree that RSync sends, crosses each link once.  A level starts as
    soon as the workers that lead to it are there.  ``Group.tree(specs)`` makes a group and returns
    that.
    specs: as for ``makegateways``, but none with a ``via=`` of its own; they have to make sense at
    the worker that leads there.  fanout: how many workers are reached from here, and at most from
    each worker; with as many specs or fewer they are all reached from here.
    Raises the errors of ``makegateways``, then none of them are left; TypeError or ValueError for a
    bad fanout.  If a worker dies, those reached through it get ``WorkerDied``, with its id as
    ``hop``; those with ``resume=`` and an address are reached another way.
    """
    from copy import copy

    from ..xspec import XSpec
    from .plan import arranged, check_fanout

    check_fanout(fanout)
    if not isinstance(specs, str):  # a group may be given the same ones again
        specs = [copy(spec) if isinstance(spec, XSpec) else spec for spec in specs]
    return group._make_all(specs, lambda prepared: arranged(prepared, fanout))


def of_class(kind: type[Group], specs: Iterable[XSpec | str | None], fanout: int = 16) -> Group:
    group = kind()
    try:
        tree(group, specs, fanout)
    except BaseException:
        group.terminate(0)
        raise
    return group


of_class.__doc__ = tree.__doc__
of_class.__name__ = tree.__name__
