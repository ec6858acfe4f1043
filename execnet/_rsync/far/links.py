"""Which links lead into a tree, and how they are announced.

This file is shipped for ``RSync.pull`` too: it keeps to what Python 2.7 and today's Python
both accept.
"""

from __future__ import annotations

import os

from .wire import ROOTED, SYMLINK

SEP = os.sep.encode()


class Links(object):
    """Distinguishes links into a tree from links out of it."""

    def __init__(self, root: bytes) -> None:
        self._root = os.path.abspath(root)
        self._prefixes = sorted({self._root, os.path.realpath(root)})

    def convert(self, path: bytes, text: bytes) -> tuple[int, bytes]:
        """Return (kind, text) to announce for the link at ``path``, relative to the root.

        The text of a ROOTED one is appended to the path of the target's root.  An absolute link
        into the tree becomes one into the copy; a relative one stays, unless it leaves the tree
        and comes back: then it is rewritten to stay inside.
        """
        if os.path.isabs(text):
            inner = self._inside(os.path.normpath(text))
            if inner is None:
                return SYMLINK, text
            for prefix in self._prefixes:
                tail = text[len(prefix) :]
                if text.startswith(prefix + SEP) and self._stays(b"", tail):
                    return ROOTED, tail
            return ROOTED, SEP + inner if inner else b""
        here = os.path.dirname(path)
        if self._stays(here, text):
            return SYMLINK, text
        inner = self._inside(os.path.normpath(os.path.join(self._root, here, text)))
        if inner is None:
            return SYMLINK, text
        return SYMLINK, os.path.relpath(inner or b".", here or b".")

    def _inside(self, path: bytes) -> bytes | None:
        for prefix in self._prefixes:
            if path == prefix:
                return b""
            if path.startswith(prefix.rstrip(SEP) + SEP):
                return path[len(prefix.rstrip(SEP)) + 1 :]
        return None

    def _stays(self, here: bytes, text: bytes) -> bool:
        depth = len([part for part in here.split(SEP) if part])
        for part in text.split(SEP):
            if part not in (b"", b"."):
                depth += -1 if part == b".." else 1
            if depth < 0:
                return False
        return True
