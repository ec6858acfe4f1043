"""Syntax trees in several threads at once."""

from __future__ import annotations

import ast

from ..gateway_base import new_lock

_TRIES = 10
_one_at_a_time = new_lock()


def parse(source: str | bytes) -> ast.Module:
    """Return the syntax tree of a module; arguments and errors as for ``ast.parse``.

    CPython before 3.13 counts the depth of a tree that it makes in one place for all threads
    (python/cpython issue 106905): if others get their turn meanwhile, since an object is finalized,
    and make one too, it raises SystemError.
    """
    for _ in range(_TRIES - 1):  # threads of the program's own may do it as well
        with _one_at_a_time:
            try:
                return ast.parse(source)
            except SystemError:
                continue
    return ast.parse(source)
