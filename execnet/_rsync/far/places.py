"""Directories of a target, and operations on names in them; no link below the root is followed.

This file is shipped: it keeps to what Python 2.7 and today's Python both accept.
Start at ``Places``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from typing import Any, TypedDict

    from .wire import Buffer

    Handle = int | bytes  # a descriptor where the system has those for directories, else a path
    Identity = tuple[int, int]  # device and inode
    # Whether case is ignored, and whether normal forms are; None: not known yet.
    Blind = tuple[bool | None, bool | None]

    class Where(TypedDict, total=False):
        """How a name is reached, as keyword arguments for calls of ``os``."""

        dir_fd: int

    Entry = tuple["Directory", int, bytes, int, int, int]  # directory, id, name, mode, size, time
    # The same as far as it takes to name it; the root is in no directory.
    Named = Entry | tuple["Directory | None", int, bytes]

HANDLES_MAX = 64  # directories kept open, where the limit on open files allows it
WRITE_BYTES = 256 * 1024  # at once; measured to be faster than more
HAS_NS = hasattr(os.stat_result, "st_mtime_ns")
HAS_OWNERS = hasattr(os, "chown")  # else they have no meaning
HAS_FDS = (
    os.name == "posix"
    and {os.chmod, os.mkdir, os.open, os.rename, os.stat, os.unlink, os.utime}
    <= getattr(os, "supports_dir_fd", set())
    and {os.listdir, os.utime} <= os.supports_fd
)


def flag(name: str) -> int:
    """Return a flag for ``os.open``, 0 where the system has none of that name."""
    return getattr(os, name, 0)


O_NOFOLLOW, O_PATH = flag("O_NOFOLLOW"), flag("O_PATH")
O_FILE = O_NOFOLLOW | flag("O_CLOEXEC") | flag("O_BINARY")
O_NEW = O_FILE | os.O_CREAT | os.O_EXCL | os.O_RDWR
O_OLD = O_FILE | os.O_RDONLY | flag("O_NONBLOCK")
SEP = os.sep.encode()
# what a host says that does not let us set an attribute
REFUSAL_NAMES = ("EPERM", "EACCES", "EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP")
REFUSALS = frozenset([code for name, code in vars(errno).items() if name in REFUSAL_NAMES])


class Directory(object):
    """A directory of the target.  ``existing`` holds the names in it, None until it was read."""

    __slots__ = (
        "blind", "broken", "existing", "fresh", "identity", "listed", "mode", "mtime", "name",
        "number", "parent", "settled",
    )  # fmt: skip

    def __init__(
        self, number: int, parent: Directory | None, name: bytes, mode: int | None, mtime: int
    ) -> None:  # fmt: skip
        self.number = number
        self.parent = parent
        self.name = name  # the root's is its whole path
        self.mode = mode  # None: not ours, its attributes stay
        self.mtime = mtime
        self.existing: set[bytes] | None = None
        self.blind: Blind = (False, False)  # which names are the same there, see ``spelling``
        self.identity: Identity | None = None  # its identity when it was first entered
        self.fresh = False  # made by this run
        self.listed = False  # all of its entries were announced
        self.broken = False  # could not be made; its entries are left out
        self.settled = False  # mode and time are as they should be

    def entry(self) -> Named:
        """Return the directory in the form of an entry."""
        return self.parent, self.number, self.name


def path_of(directory: Directory | None, name: bytes) -> bytes:
    """Return the path, relative to the root, of a name in a directory; b"" for the root."""
    if directory is None:
        return b""
    parts = [name]
    while directory.parent is not None:
        parts.append(directory.name)
        directory = directory.parent
    return b"/".join(reversed(parts))


def depth_of(directory: Directory) -> int:
    """Return how deep below the root a directory is."""
    depth = 0
    while directory.parent is not None:
        directory = directory.parent
        depth += 1
    return depth


class Handles(object):
    """The directories used last, kept open.

    A handle is a descriptor where the system has those for directories, and elsewhere a path.
    """

    def __init__(self, at_most: int) -> None:
        self._handles: OrderedDict[Hashable, Handle] = OrderedDict()
        self._max = at_most

    def _keep(self, key: Hashable, handle: Handle) -> Handle:
        self._handles[key] = handle
        if len(self._handles) > self._max:
            self._leave(self._handles.popitem(last=False)[1])
        return handle

    def _leave(self, handle: Handle) -> None:
        if isinstance(handle, int):
            os.close(handle)

    def close(self) -> None:
        while self._handles:
            self._leave(self._handles.popitem()[1])


class Places(Handles):
    """Reaches directories of the target without following a link below the root."""

    def __init__(self) -> None:
        Handles.__init__(self, min(HANDLES_MAX, files_max() // 8))

    def handle(self, directory: Directory) -> Handle:
        """Return the handle of a directory; OSError if it is not a directory any more."""
        handle = self._handles.get(directory)
        if handle is not None:
            return handle
        chain, place = [directory], directory.parent
        while place is not None:
            handle = self._handles.get(place)
            if handle is not None:
                break
            chain.append(place)
            place = place.parent
        entered = self._enter(chain.pop(), handle)
        while chain:
            entered = self._enter(chain.pop(), entered)
        return entered

    def _enter(self, directory: Directory, parent: Handle | None) -> Handle:
        if isinstance(parent, int):
            handle: Handle = os.open(directory.name, O_OLD | os.O_DIRECTORY, dir_fd=parent)
        elif parent is not None:
            handle = parent + SEP + directory.name
            if not stat.S_ISDIR(os.lstat(handle).st_mode):
                raise OSError(errno.ENOTDIR, "is not a directory any more")
        elif HAS_FDS:
            handle = os.open(directory.name, (O_OLD | os.O_DIRECTORY) & ~O_NOFOLLOW)
        else:
            handle = directory.name
        identity = identity_of(os.stat(handle))
        if directory.identity not in (None, identity):
            self._leave(handle)
            raise OSError(errno.ENOENT, "was replaced meanwhile")
        directory.identity = identity
        return self._keep(directory, handle)


def files_max() -> int:
    """Return how many files this process may have open; a large number if there is no limit."""
    try:
        import resource
    except ImportError:  # Windows
        return 512
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if limit == resource.RLIM_INFINITY else limit


def at(handle: Handle, name: bytes) -> tuple[bytes, Where]:
    """Return (path, keyword arguments) for calls of ``os`` on a name in a directory."""
    if isinstance(handle, int):
        return name, {"dir_fd": handle}
    return handle + SEP + name, {}


def identity_of(found: os.stat_result) -> Identity:
    """Return what distinguishes a file from every other one."""
    return found.st_dev, found.st_ino


def open_same(handle: Handle, name: bytes, identity: Identity) -> int:
    """Return a descriptor of a file in a directory; OSError if the name is another file by now.

    It may only be good for changing attributes, through ``own_path``.
    """
    path, where = at(handle, name)
    try:
        fd = os.open(path, O_OLD, **where)
    except OSError as exc:
        if exc.errno != errno.EACCES or not O_PATH:
            raise
        fd = os.open(path, O_PATH | O_FILE, **where)
    if identity_of(os.fstat(fd)) != identity:
        os.close(fd)
        raise OSError(errno.ENOENT, "was replaced meanwhile")
    return fd


def chmod_same(handle: Handle, name: bytes, found: os.stat_result, mode: int) -> os.stat_result:
    """Set the mode of the very file that was found; return its new status."""
    return change_same(handle, name, found, lambda path: os.chmod(path, mode))


def change_same(
    handle: Handle, name: bytes, found: os.stat_result, change: Callable[[int | bytes], object]
) -> os.stat_result:  # fmt: skip
    """Change the very file that was found; return its new status.

    change: takes a descriptor or a path.
    """
    if not isinstance(handle, int):
        path = handle + SEP + name
        if identity_of(os.lstat(path)) != identity_of(found):
            raise OSError(errno.ENOENT, "was replaced meanwhile")
        change(path)
        return os.lstat(path)
    fd = open_same(handle, name, identity_of(found))
    try:
        try:
            change(fd)
        except OSError as exc:
            if exc.errno != errno.EBADF:
                raise
            change(b"/proc/self/fd/%d" % fd)  # it could not be opened for reading
        return os.fstat(fd)
    finally:
        os.close(fd)


def make_directories(path: bytes) -> bool:
    """Make a directory and its parents; return whether it did not exist."""
    try:
        os.makedirs(path)
    except OSError as exc:
        if exc.errno != errno.EEXIST or not os.path.isdir(path):
            raise
        return False  # somebody else made it first
    return True


def names_in(handle: Handle) -> set[bytes]:
    return {
        name if isinstance(name, bytes) else os.fsencode(name) for name in os.listdir(handle)
    }  # fmt: skip


def names_beginning(handle: Handle, prefix: bytes) -> set[bytes]:
    """Return those names in a directory that begin so; there may be very many others."""
    if getattr(os, "scandir", None) not in getattr(os, "supports_fd", ()):
        return {name for name in names_in(handle) if name.startswith(prefix)}
    with os.scandir(handle) as entries:
        names = (os.fsencode(entry.name) for entry in entries)
        return {name for name in names if name.startswith(prefix)}


def rename(handle: Handle, old: bytes, new: bytes) -> None:
    if isinstance(handle, int):
        os.rename(old, new, src_dir_fd=handle, dst_dir_fd=handle)
    elif hasattr(os, "replace"):
        os.replace(handle + SEP + old, handle + SEP + new)
    else:
        os.rename(handle + SEP + old, handle + SEP + new)


def set_time(path: int | bytes, mtime: int, **where: Any) -> None:
    if HAS_NS:
        os.utime(path, ns=(mtime, mtime), **where)
    else:
        os.utime(path, (mtime / 1e9, mtime / 1e9))


def set_link_time(handle: Handle, name: bytes, mtime: int) -> None:
    """Set the time of a link, never that of a file that has its name by now."""
    path, where = at(handle, name)
    if not (HAS_FDS and O_PATH):
        os.utime(path, ns=(mtime, mtime), follow_symlinks=False, **where)
        return
    fd = os.open(path, O_PATH | O_FILE, **where)
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            os.utime(b"/proc/self/fd/%d" % fd, ns=(mtime, mtime))
    finally:
        os.close(fd)


def same_time(found: os.stat_result, mtime: int) -> bool:
    if HAS_NS:
        return bool(found.st_mtime_ns == mtime)
    return bool(abs(found.st_mtime - mtime / 1e9) < 2e-6)  # all that this Python can find out


def time_of(found: os.stat_result) -> int:
    return int(found.st_mtime_ns) if HAS_NS else int(found.st_mtime * 1000000) * 1000


def effective_user() -> int:
    """Return the number of the user that this process acts as, 0 where there are none."""
    return os.geteuid() if HAS_OWNERS else 0


def is_sparse(found: os.stat_result) -> bool:
    """Return whether a file takes less room than its size, as far as the system tells."""
    return getattr(found, "st_blocks", 1 << 60) * 512 < found.st_size


def write_all(fd: int, data: Buffer) -> None:
    written = os.write(fd, data[:WRITE_BYTES])
    while written < len(data):
        written += os.write(fd, data[written : written + WRITE_BYTES])


def read_full(fd: int, size: int) -> bytes:
    """Return ``size`` bytes; zeros for what was cut off meanwhile, which no proof will accept."""
    data = os.read(fd, size)
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            return data.ljust(size, b"\0")
        data += more
    return data
