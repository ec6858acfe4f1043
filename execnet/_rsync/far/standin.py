"""What a target gets instead of links that it cannot make: copies of what they point to.

This file is shipped for ``RSync.pull`` too: it keeps to what Python 2.7 and today's Python
both accept.  Start at ``StandIns.announce``.
"""

from __future__ import annotations

import bisect
import errno
import os
import stat

from .links import SEP
from .tree import Entries
from .wire import DIRECTORY, FILE, FIRST_STANDIN, INSTEAD, LIST, reason_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .tree import Accept, Remark, Tree
    from .wire import Message

DEPTH_MAX = 8  # links within what links point to
ENTRIES_MAX = 1000000
WHY = "the target cannot make links, and a copy is not possible: "


class Refused(Exception):
    """A link cannot be replaced by a copy; the text says why."""


class StandIns(object):
    """Copies of what links point to; used by one pump, and so by one thread."""

    def __init__(self, tree: Tree, accept: Accept | None, remark: Remark) -> None:
        rules, root = tree.rules, tree.root
        self.entries = Entries(root, FIRST_STANDIN, accept, remark, rules, tree.identity)
        self.entries.hidden = tree.hidden
        if tree.tells_owners():
            self.entries.tell_owners()
        self._folders = self.entries.folders()
        self._rules = rules
        self._root = os.path.realpath(root)
        self._accept = accept
        self._firsts: list[int] = []  # ids at which copies of directories begin
        self._chains: list[list[bytes]] = []  # for each, the directories that links led here from

    def close(self) -> None:
        self._folders.close()

    def announce(self, number: int, path: bytes) -> Iterator[tuple[int, Message]]:
        """Yield (cost, message) pairs that announce a copy in place of the link at ``path``.

        Raises ``Refused`` before the first one if a copy is not possible.
        """
        target = self._resolve(path)
        try:
            found = self._look(target)
        except OSError as exc:
            raise Refused(WHY + reason_of(exc).decode("utf-8", "replace"))
        if stat.S_ISDIR(found.st_mode):
            shown = self.entries.shown.get(number, path)
            if self._rules is not None and self._rules.leaves_out(shown, True):
                raise Refused(WHY + "directories of its name are excluded")
            self._enter(number, path, target)
            new, mode, mtime = self.entries.add(target, DIRECTORY, found, 0)
            if self._rules is not None:
                self.entries.shown[new] = shown
            for message in self.entries.owners_told():
                yield 0, message
            yield 0, (INSTEAD, number, DIRECTORY, new, mode, 0, mtime)
            for item in self._directories(new):
                yield item
        elif stat.S_ISREG(found.st_mode):
            new, mode, mtime = self.entries.add(target, FILE, found, found.st_size)
            for message in self.entries.owners_told():
                yield 0, message
            yield 0, (INSTEAD, number, FILE, new, mode, found.st_size, mtime)
        elif stat.S_ISLNK(found.st_mode):  # to itself, or it became a link just now
            raise Refused(WHY + os.strerror(errno.ELOOP))
        else:
            raise Refused(WHY + "it points to a special file")

    def _look(self, path: bytes) -> os.stat_result:
        return self._folders.look(path) if path else os.stat(self.entries.root)

    def _resolve(self, path: bytes) -> bytes:
        """Return what a link points to as a path below the root."""
        target = os.path.realpath(self._root + SEP + path)
        if target != self._root and not target.startswith(self._root.rstrip(SEP) + SEP):
            raise Refused(WHY + "it leads out of the tree")
        inner = target[len(self._root.rstrip(SEP)) + 1 :]
        parts = inner.split(SEP)
        for count in range(1, len(parts) + 1 if inner else 0):
            if self._is_left_out(SEP.join(parts[:count])):
                raise Refused(WHY + "it points to an excluded entry")
        return inner

    def _is_left_out(self, path: bytes) -> bool:
        if path in self.entries.hidden:
            return True
        if self._accept is not None and not self._accept(path):
            return True
        if self._rules is None:
            return False
        try:
            is_directory = stat.S_ISDIR(self._look(path).st_mode)
        except OSError:
            is_directory = False
        return bool(self._rules.leaves_out(path, is_directory))

    def _enter(self, number: int, path: bytes, target: bytes) -> None:
        """Begin a copy of the directory ``target``; refuse one that would never end."""
        chain = [os.path.dirname(path)]
        if number >= FIRST_STANDIN:
            place = bisect.bisect_right(self._firsts, number) - 1
            chain = self._chains[place] + chain
        if [outer for outer in chain if is_below(outer, target)]:
            raise Refused(WHY + "it leads in a loop")
        if len(chain) > DEPTH_MAX or self.entries.count() - FIRST_STANDIN > ENTRIES_MAX:
            raise Refused(WHY + "there would be too many copies")
        self._firsts.append(self.entries.count())
        self._chains.append(chain)

    def _directories(self, number: int) -> Iterator[tuple[int, Message]]:
        stack = [number]
        while stack:
            inner: list[int] = []
            for cost, unit in self.entries.units_of(stack.pop(), inner, self._folders):
                for message in self.entries.owners_told():
                    yield 0, message
                yield cost, (LIST, cost, [unit])
            stack.extend(reversed(inner))


def is_below(path: bytes, directory: bytes) -> bool:
    """Return whether a path is a directory or in it; the root is b""."""
    return not directory or path == directory or path.startswith(directory + SEP)
