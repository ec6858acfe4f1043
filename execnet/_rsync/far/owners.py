"""Who owns what: told by the source by number and by name, and set at the target if that is wanted.

This file is shipped, to either side: it keeps to what Python 2.7 and today's Python both accept.
A name counts where the target knows it, otherwise the number.  Start at ``Owners``.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from array import array

from .places import (
    HAS_FDS,
    HAS_OWNERS,
    O_FILE,
    O_PATH,
    REFUSALS,
    at,
    change_same,
    effective_user,
)
from .wire import FIRST_STANDIN, OWNERS, PY2, TooMuch, Violation

try:
    import grp
    import pwd
except ImportError:  # Windows
    grp = pwd = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .places import Handle
    from .wire import Message

NAMES_MAX = 100000  # of users, and of groups


class Told(object):
    """What a source has to tell of the owners of its entries, in the order of their ids.

    first: the first id.
    """

    def __init__(self, first: int = 0) -> None:
        self._pairs = array("I")
        self._next = first  # the first id of which nothing was told
        self._users: dict[int, bytes] = {}  # number -> name, if it has one
        self._groups: dict[int, bytes] = {}

    def add(self, found: os.stat_result) -> None:
        self._pairs.append(found.st_uid)
        self._pairs.append(found.st_gid)

    def messages(self) -> list[Message]:
        """Return what there is to tell since the last time."""
        pairs = self._pairs
        self._pairs = array("I")
        if not pairs:
            return []
        users = new_names(self._users, pairs[::2], lambda number: pwd.getpwuid(number).pw_name)
        groups = new_names(self._groups, pairs[1::2], lambda number: grp.getgrgid(number).gr_name)
        first, self._next = self._next, self._next + len(pairs) // 2
        return [(OWNERS, first, struct.pack("!%dI" % len(pairs), *pairs), users, groups)]


def new_names(
    known: dict[int, bytes], numbers: Iterable[int], name_of: Callable[[int], str | bytes]
) -> dict[int, bytes]:  # fmt: skip
    """Return {number: name} of those numbers that are not known yet, and have one."""
    new = {}
    for number in set(numbers) - set(known):
        try:
            name = name_of(number)
        except (KeyError, OverflowError):
            name = b""
        known[number] = name if isinstance(name, bytes) else os.fsencode(name)
        if known[number]:
            new[number] = known[number]
    return new


class Owners(object):
    """Whom the entries of a target are to belong to.

    is_wanted: whether that is kept at all.  most_files: entries that may be announced, or None.
    """

    def __init__(self, is_wanted: bool, most_files: int | None) -> None:
        self.is_wanted = is_wanted
        self._most_files = most_files
        # as the source told, by id: of the walk, and of copies in place of links
        self._pairs = {False: array("I"), True: array("I")}
        self._users: dict[int, int] = {}  # number there -> number here
        self._groups: dict[int, int] = {}
        self.refused = 0  # entries that could not be given away

    def learn(
        self, first: int, pairs: bytes, users: dict[int, bytes], groups: dict[int, bytes]
    ) -> None:  # fmt: skip
        """Take what a source tells of the entries from an id on."""
        count = len(pairs) // 8
        known, place = self._of(first)
        if place != len(known) or len(pairs) % 8:
            raise Violation("%d bytes of owners from entry %d on" % (len(pairs), first))
        if self._most_files is not None and place // 2 + count > self._most_files + 1:
            raise TooMuch("more than %d entries" % self._most_files)
        if max(len(self._users) + len(users), len(self._groups) + len(groups)) > NAMES_MAX:
            raise TooMuch("more than %d names of owners" % NAMES_MAX)
        if not HAS_OWNERS:
            self.refused += count
            return
        known.extend(struct.unpack("!%dI" % (2 * count), pairs))
        for number, name in users.items():
            self._users[number] = number_of(lambda name: pwd.getpwnam(name).pw_uid, name, number)
        for number, name in groups.items():
            self._groups[number] = number_of(lambda name: grp.getgrnam(name).gr_gid, name, number)

    def _of(self, number: int) -> tuple[array[int], int]:
        """Return (where the owner of an entry is told, at which place)."""
        is_standin = number >= FIRST_STANDIN
        return self._pairs[is_standin], 2 * (number - FIRST_STANDIN * is_standin)

    def _owner_of(self, number: int) -> tuple[int, int] | None:
        """Return (user, group) of an entry by the numbers here, None if it is not told."""
        known, place = self._of(number)
        if place >= len(known):
            return None
        user, group = known[place : place + 2]
        return self._users.get(user, user), self._groups.get(group, group)

    def is_right(self, number: int, found: os.stat_result) -> bool:
        """Whether what was found has the right owner, as far as owners are wanted."""
        return self._owner_of(number) in (None, (found.st_uid, found.st_gid))

    def may_be_refused(self) -> bool:
        """Tell whether this process may give away only some of what it makes."""
        return bool(effective_user())

    def give(
        self, number: int, found: os.stat_result, chown: Callable[[int, int], object],
        look: Callable[[], os.stat_result]
    ) -> os.stat_result:  # fmt: skip
        """Give something to its right owner; return its state after that.

        chown: takes a user and a group, -1 for as it is.  look: returns what is found.  What is
        refused is counted; the group may be changed all the same.
        """
        owner = self._owner_of(number)
        if owner is None or owner == (found.st_uid, found.st_gid):
            return found
        user, group = owner
        for pair in ((user, group), (-1, group)):
            try:
                chown(*pair)
                break
            except OSError as exc:
                if exc.errno not in REFUSALS:
                    raise
        found = look()
        self.refused += not self.is_right(number, found)
        return found

    def give_open(self, number: int, fd: int, found: os.stat_result) -> os.stat_result:
        """Do that with what a descriptor is open on."""

        def chown(user: int, group: int) -> None:
            os.fchown(fd, user, group)

        return self.give(number, found, chown, lambda: os.fstat(fd))

    def give_same(
        self, number: int, handle: Handle, name: bytes, found: os.stat_result
    ) -> os.stat_result:  # fmt: skip
        """Do that with the very file that was found under a name."""

        def chown(user: int, group: int) -> None:
            change_same(handle, name, found, lambda path: os.chown(path, user, group))

        path, where = at(handle, name)
        return self.give(number, found, chown, lambda: os.lstat(path, **where))

    def give_link(self, number: int, handle: Handle, name: bytes, found: os.stat_result) -> None:
        """Do that with a link, never with a file that has its name by now."""
        path, where = at(handle, name)

        def chown(user: int, group: int) -> None:
            if not HAS_FDS:
                os.lchown(path, user, group)
                return
            if not O_PATH:
                os.chown(path, user, group, follow_symlinks=False, **where)
                return
            fd = os.open(path, O_PATH | O_FILE, **where)
            try:
                if not stat.S_ISLNK(os.fstat(fd).st_mode):
                    raise OSError(errno.ENOENT, "was replaced meanwhile")
                os.chown(b"/proc/self/fd/%d" % fd, user, group)
            finally:
                os.close(fd)

        self.give(number, found, chown, lambda: os.lstat(path, **where))


def number_of(find: Callable[[str], int], name: bytes, number: int) -> int:
    """Return the number that a name has here, or that which it has there."""
    try:
        return find(str(name) if PY2 else os.fsdecode(name))
    except (KeyError, ValueError):  # no such name, or none at all
        return number
