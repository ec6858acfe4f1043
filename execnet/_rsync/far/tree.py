"""What a source offers: a walk of its tree, and the content of its files.

This file is shipped for ``RSync.pull`` too: it keeps to what Python 2.7 and today's Python
both accept.  One ``Tree`` is walked once and serves any number of targets: an entry's id is its
place in the order of the walk, the same for all of them.  Start at ``Tree.walk``.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from array import array
from collections import deque

from .folders import Folders
from .links import SEP, Links
from .owners import Told
from .places import HAS_NS, HAS_OWNERS, at
from .wire import (
    COMPLETE,
    DIRECTORY,
    FILE,
    HARDLINK,
    INCOMPLETE,
    LEADER,
    LIST,
    LIST_END,
    MORE,
    ROOTED,
    SMALL_MAX,
    SYMLINK,
    pack_numbers,
    reason_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from .places import Handle, Identity
    from .rules import Rules
    from .wire import Change, Message, PackedUnit

    Accept = Callable[[bytes], object]  # takes a path, and says whether it is included
    Remark = Callable[[bytes, bytes], object]  # takes a path and a reason
    Step = tuple[int, int, Message]  # ids announced by then, cost, message
    Content = tuple[bytes, Change | None, bool]  # see ``Entries.read_small``
    Version = tuple[int, int, int, float]  # inode, size, times of the last changes

LIST_BYTES = 64 * 1024  # of announcements that go in one message
UNIT_ENTRIES = 2000  # of a directory in one unit
FILE_KINDS = frozenset([FILE, LEADER, HARDLINK])
CACHE_BYTES = 16 * 1024 * 1024  # of small files that other targets may ask for soon

GONE_ERRORS = (errno.ENOENT, errno.ENOTDIR, getattr(errno, "ESTALE", errno.ENOENT))
KINDS = [
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
]


class SourceGone(OSError):
    """The source directory is gone, so nothing in it can be read."""


class Unstable(Exception):
    """A file could not be read whole: it changed meanwhile, or is not a file any more."""


def mtime_of(found: os.stat_result) -> int:
    """Return the time of last change in nanoseconds."""
    if HAS_NS:
        return int(found.st_mtime_ns)
    return int(found.st_mtime * 1000000) * 1000


def identity_of(found: os.stat_result) -> Version:
    """Return values that change when a file's content does."""
    return found.st_ino, found.st_size, mtime_of(found), found.st_ctime


def has_grown(before: os.stat_result, after: os.stat_result) -> bool:
    """Return whether a file may just have been appended to."""
    return bool(after.st_ino == before.st_ino and after.st_size > before.st_size)


def status_of(handle: Handle, name: bytes) -> os.stat_result | OSError:
    """Return the ``lstat`` of a name in a directory, or the OSError that it raises."""
    path, where = at(handle, name)
    try:
        return os.lstat(path, **where)
    except OSError as exc:
        return exc


def is_left_out(rules: Rules, path: bytes, found: os.stat_result | OSError) -> bool:
    is_directory = not isinstance(found, OSError) and stat.S_ISDIR(found.st_mode)
    return rules.leaves_out(path, is_directory)


class Unit(object):
    """Entries of one directory, on their way into one message."""

    def __init__(self, directory: int, first: int) -> None:
        self._directory = directory
        self._first = first
        self._names: list[bytes] = []
        self._kept: list[bytes] = []  # names that are there and cannot be sent
        self._left_out: list[bytes] = []  # names that the user's filter leaves out
        self._kinds = bytearray()
        self._modes: list[int] = []
        self._sizes: list[int] = []
        self._times: list[int] = []
        self._extras: list[int | bytes] = []
        self.cost = 64

    def __len__(self) -> int:
        return len(self._kinds) + len(self._kept) + len(self._left_out)

    def add(
        self, name: bytes, kind: int, mode: int, size: int, mtime: int, extra: int | bytes | None
    ) -> None:  # fmt: skip
        self._names.append(name)
        self._kinds.append(kind)
        self._modes.append(mode)
        self._sizes.append(size)
        self._times.append(mtime)
        if extra is not None:
            self._extras.append(extra)
        self.cost += len(name) + 32 + (len(extra) if isinstance(extra, bytes) else 0)

    def keep(self, name: bytes) -> None:
        """Add a name that is not sent, and whose counterpart must not be deleted."""
        self._kept.append(name)
        self.cost += len(name) + 32

    def leave_out(self, name: bytes) -> None:
        """Add a name that is left out, for a target that deletes what is not announced."""
        self._left_out.append(name)
        self.cost += len(name) + 32

    def packed(self, last: int) -> PackedUnit:
        names, kinds = b"\0".join(self._names), bytes(self._kinds)
        kept = b"\0".join(self._kept), b"\0".join(self._left_out)
        modes = pack_numbers("H", self._modes)
        sizes, times = pack_numbers("q", self._sizes), pack_numbers("q", self._times)
        extras = self._extras
        return self._directory, self._first, names, kinds, modes, sizes, times, extras, kept, last


class Entries(object):
    """What is known about announced entries, by id.  Ids count from ``first``.

    accept and rules say which entries are included, None for all.  tells_left_out: announce the
    names that ``accept`` refuses, too.  identity: recognises the root later, None for a file.
    """

    def __init__(
        self, root: bytes, first: int, accept: Accept | None, remark: Remark, rules: Rules | None,
        identity: Identity | None
    ) -> None:  # fmt: skip
        self.root = root
        self.first = first
        self._accept = accept
        self._remark = remark
        self._rules = rules
        self.tells_left_out = False
        # targets in here, which are not sent; what another target has of that name stays
        self.hidden: frozenset[bytes] = frozenset()
        self.shown: dict[int, bytes] = {}  # paths of what stands in for links, where rules count
        self.identity = identity
        self._links = Links(root)
        self._paths: list[bytes] = []  # relative to the root, to read from
        self._kinds = bytearray()
        self._sizes = array("d" if sys.version_info[0] == 2 else "q")
        self._modes = array("H")
        self._times: list[int] = []
        self._owners: Told | None = None  # ``Told``, if these are announced

    def check_source(self, exc: Exception) -> None:
        """Raise ``SourceGone`` if that is why something could not be read."""
        if not isinstance(exc, OSError) or exc.errno not in GONE_ERRORS:
            return
        try:
            found = os.stat(self.root)
        except OSError:
            found = None
        if found is None or (stat.S_ISDIR(found.st_mode) and self._is_another(found)):
            raise SourceGone(errno.ENOENT, "the source has vanished", self.root)

    def _is_another(self, root: os.stat_result) -> bool:
        return self.identity is not None and self.identity != (root.st_dev, root.st_ino)

    def count(self) -> int:
        return self.first + len(self._paths)

    def tell_owners(self) -> None:
        """Announce who owns what, too; not after the first entry was added."""
        if HAS_OWNERS:  # else they have no meaning
            self._owners = Told(self.first)

    def tells_owners(self) -> bool:
        return self._owners is not None

    def owners_told(self) -> list[Message]:
        """Return messages about the owners of the entries that were added since the last time."""
        return [] if self._owners is None else self._owners.messages()

    def add(self, path: bytes, kind: int, found: os.stat_result, size: int) -> tuple[int, int, int]:
        """Add an entry; return its (id, mode, time)."""
        mode = found.st_mode & (0o1777 if kind == DIRECTORY else 0o777)
        mtime = found.st_mtime_ns if HAS_NS else mtime_of(found)
        self._paths.append(path)
        self._kinds.append(kind)
        self._sizes.append(size)
        self._modes.append(mode)
        self._times.append(mtime)
        if self._owners is not None:
            self._owners.add(found)
        return self.count() - 1, mode, mtime

    def path_of(self, number: int) -> bytes:
        """Return an entry's path below the root."""
        path: bytes = self._paths[number - self.first]
        return path

    def size_of(self, number: int) -> int:
        return int(self._sizes[number - self.first])

    def version_of(self, number: int) -> tuple[int, int]:
        """Return size and time of an entry, as it was listed."""
        return self.size_of(number), self._times[number - self.first]

    def file_size(self, number: int) -> int | None:
        """Return the size of a file, None if the entry is not a file."""
        place = number - self.first
        return int(self._sizes[place]) if self._kinds[place] in FILE_KINDS else None

    def is_file(self, number: int) -> bool:
        return self._kinds[number - self.first] in FILE_KINDS

    def is_link(self, number: int) -> bool:
        return self._kinds[number - self.first] in (SYMLINK, ROOTED)

    def folders(self) -> Folders:
        """Return one thread's way to these entries; the caller closes it."""
        return Folders(self.root, self.identity)

    # a directory

    def units_of(
        self, number: int, inner: list[int], folders: Folders
    ) -> Iterator[tuple[int, PackedUnit]]:  # fmt: skip
        """Yield (cost, unit) of a directory; add the ids of directories in it to ``inner``.

        folders: must not be used for anything else until this has ended.
        """
        here = self.path_of(number)
        names, last = [], COMPLETE
        try:
            names = self._with_hidden(here, folders.names(here))
            handle = folders.handle(here)
        except OSError as exc:
            self.check_source(exc)
            self._remark(here, reason_of(exc))
            last = INCOMPLETE
        unit = Unit(number, self.count())
        shown = self.shown.get(number)
        for name in names:
            path = here + SEP + name if here else name
            if self._accept is not None and not self._accept(path):
                if self.tells_left_out:
                    unit.leave_out(name)
            else:
                found = status_of(handle, name)
                if self._rules and not self._may_be_shown(self._rules, path, shown, name, found):
                    pass
                elif path in self.hidden:
                    unit.keep(name)
                else:
                    self._add_entry(unit, path, name, found, inner, handle)
            if len(unit) == UNIT_ENTRIES:
                yield unit.cost, unit.packed(MORE)
                unit = Unit(number, self.count())
        yield unit.cost, unit.packed(last)

    def _with_hidden(self, here: bytes, names: list[bytes]) -> list[bytes]:
        """Return names in a directory, with those of targets that are only about to be made."""
        hidden = [path.rpartition(SEP) for path in sorted(self.hidden)]
        return names + [name for folder, _, name in hidden if folder == here and name not in names]

    def _may_be_shown(
        self, rules: Rules, path: bytes, shown: bytes | None, name: bytes,
        found: os.stat_result | OSError,
    ) -> bool:  # fmt: skip
        """Return whether rules let an entry through; also by the path that it gets.

        shown: of its directory, if that stands in for a link, or is in such a one.
        """
        if is_left_out(rules, path, found):
            return False
        if shown is not None:
            shown = shown + SEP + name
            self.shown[self.count()] = shown
            return not is_left_out(rules, shown, found)
        return True

    def _add_entry(
        self, unit: Unit, path: bytes, name: bytes, found: os.stat_result | OSError,
        inner: list[int], handle: Handle
    ) -> None:  # fmt: skip
        if isinstance(found, OSError):
            self.check_source(found)
            self._remark(path, reason_of(found))
            if found.errno != errno.ENOENT:  # it is not gone, and we cannot know what it is
                unit.keep(name)
        elif stat.S_ISREG(found.st_mode):
            if found.st_nlink < 2:
                self._add(unit, path, name, FILE, found, found.st_size, None)
            else:
                self._add_linked(unit, path, name, found)
        elif stat.S_ISDIR(found.st_mode):
            inner.append(self.count())
            self._add(unit, path, name, DIRECTORY, found, 0, None)
        elif stat.S_ISLNK(found.st_mode):
            self._add_link(unit, path, name, found, handle)
        else:
            kinds = [what for test, what in KINDS if test(found.st_mode)] + ["a special file"]
            self._remark(path, ("is %s, left out" % kinds[0]).encode())
            unit.keep(name)

    def _add_linked(self, unit: Unit, path: bytes, name: bytes, found: os.stat_result) -> None:
        """Add a file that has other names."""
        self._add(unit, path, name, FILE, found, found.st_size, None)

    def _add_link(
        self, unit: Unit, path: bytes, name: bytes, found: os.stat_result, handle: Handle
    ) -> None:  # fmt: skip
        link, where = at(handle, name)
        try:
            kind, text = self._links.convert(path, os.readlink(link, **where))
        except OSError as exc:
            self.check_source(exc)
            self._remark(path, reason_of(exc))
            if exc.errno != errno.ENOENT:
                unit.keep(name)
        else:
            self._add(unit, path, name, kind, found, 0, text)

    def _add(
        self, unit: Unit, path: bytes, name: bytes, kind: int, found: os.stat_result, size: int,
        extra: int | bytes | None
    ) -> None:  # fmt: skip
        _, mode, mtime = self.add(path, kind, found, size)
        unit.add(name, kind, mode, size, mtime, extra)

    # content

    def open(self, number: int, folders: Folders) -> int:
        """Open an announced file; the caller closes it."""
        try:
            return folders.open(self.path_of(number))
        except OSError as exc:
            if exc.errno == errno.ELOOP:
                raise Unstable("became a link since it was listed")
            raise

    def read_small(self, number: int, folders: Folders) -> Content | None:
        """Return (content, None or the new (mode, time), whether the file grew meanwhile).

        Returns None if the file is not small any more; raises OSError, or ``Unstable`` for a file
        that changes.
        """
        fd = self.open(number, folders)
        try:
            data = os.read(fd, SMALL_MAX + 1)
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise Unstable("is not a file any more")
            if len(data) > SMALL_MAX:
                return None
            if len(data) == found.st_size and self._is_as_listed(number - self.first, found):
                return data, None, False
            return self._read_changed(fd, found)
        finally:
            os.close(fd)

    def _is_as_listed(self, place: int, found: os.stat_result) -> bool:
        listed = self._sizes[place], self._modes[place], self._times[place]
        return listed == (found.st_size, found.st_mode & 0o777, mtime_of(found))

    def _read_changed(self, fd: int, before: os.stat_result) -> Content | None:
        """Read a file that is not as it was listed; it must not change while it is read."""
        os.lseek(fd, 0, os.SEEK_SET)
        data = os.read(fd, SMALL_MAX + 1)
        if len(data) > SMALL_MAX:
            return None
        after = os.fstat(fd)
        grew = identity_of(after) != identity_of(before)
        if grew:
            data = data[: before.st_size]
            os.lseek(fd, 0, os.SEEK_SET)
            if not has_grown(before, after) or os.read(fd, before.st_size) != data:
                raise Unstable("changed while it was read")
        if len(data) != before.st_size:
            raise Unstable("changed while it was read")
        return data, (before.st_mode & 0o777, mtime_of(before)), grew


class Tree(Entries):
    """A source: one thread walks it, once; any thread may read its content.

    accept: takes an entry's path below the root and returns whether it is included; None for all.
    remark: called with (path, reason) of what is left out.  rules: ``Rules`` that leave paths out,
    or None.  Raises OSError if the source does not exist.
    """

    def __init__(
        self,
        root: bytes,
        accept: Accept | None,
        remark: Callable[[bytes, bytes], object],
        rules: Rules | None = None,
    ) -> None:
        Entries.__init__(self, root, 0, accept, remark, rules, None)
        self.rules = rules
        self._found = os.stat(root)
        if stat.S_ISDIR(self._found.st_mode):
            self.root_kind = DIRECTORY
            self.identity = self._found.st_dev, self._found.st_ino
        elif stat.S_ISREG(self._found.st_mode):
            self.root_kind = FILE
        else:
            raise OSError(errno.EINVAL, "neither a file nor a directory", root)
        _, mode, mtime = self.add(b"", DIRECTORY, self._found, 0)
        self.root_entry = self.root_kind, mode, mtime
        self.shared = False  # several targets will ask for the same files
        self._leaders: dict[Identity, int] = {}  # inode -> id
        self._cache: dict[int, Content] = {}
        self._cache_order: deque[tuple[int, int]] = deque()
        self._cache_bytes = 0
        self._cache_lock = threading.Lock()

    def tell_owners(self) -> None:
        """Announce who owns what, too; not after the walk began."""
        Entries.tell_owners(self)
        if self._owners is not None:
            self._owners.add(self._found)

    def _owners_told(self) -> list[Step]:
        return [(self.count(), 0, message) for message in self.owners_told()]

    def walk(self) -> Generator[Step, None, None]:
        """Yield (ids announced by then, cost, message); the last message is ``LIST_END``.

        It holds directories open: close it if you do not take it to the end.
        """
        units: list[PackedUnit] = []
        cost = 0
        limit = LIST_BYTES // 16  # the first goes soon, so that the target has work
        for unit_cost, unit in self._units():
            units.append(unit)
            cost += unit_cost
            if cost >= limit:
                for told in self._owners_told():
                    yield told
                yield self.count(), cost, (LIST, cost, units)
                units, cost, limit = [], 0, LIST_BYTES
        for told in self._owners_told():
            yield told
        if units:
            yield self.count(), cost, (LIST, cost, units)
        yield self.count(), 0, (LIST_END,)

    def _units(self) -> Iterator[tuple[int, PackedUnit]]:
        if self.root_kind == FILE:
            unit = Unit(0, 1)  # the target knows the name
            self._add(unit, b"", b"-", FILE, self._found, self._found.st_size, None)
            yield unit.cost, unit.packed(COMPLETE)
            return
        stack, folders = [0], self.folders()
        try:
            while stack:
                inner: list[int] = []
                for item in self.units_of(stack.pop(), inner, folders):
                    yield item
                stack.extend(reversed(inner))
        finally:
            folders.close()

    def _add_linked(self, unit: Unit, path: bytes, name: bytes, found: os.stat_result) -> None:
        inode = found.st_dev, found.st_ino
        leader = self._leaders.setdefault(inode, self.count())
        if leader == self.count():
            self._add(unit, path, name, LEADER, found, found.st_size, None)
        else:
            self._add(unit, path, name, HARDLINK, found, found.st_size, leader)

    def read_small(self, number: int, folders: Folders) -> Content | None:
        """Read a small file; keep it for a while if several targets will ask for it."""
        found = self._cache.get(number)
        if found is None:
            found = Entries.read_small(self, number, folders)
            if found is not None and self.shared:
                with self._cache_lock:
                    self._keep(number, found)
        return found

    def _keep(self, number: int, found: Content) -> None:
        self._cache[number] = found
        self._cache_order.append((number, len(found[0]) + 200))
        self._cache_bytes += len(found[0]) + 200
        while self._cache_bytes > CACHE_BYTES:
            oldest, size = self._cache_order.popleft()
            self._cache.pop(oldest, None)
            self._cache_bytes -= size
