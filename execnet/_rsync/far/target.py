"""The target's half of RSync: turns what a source announces into files.

This file is shipped, with those that it imports: they keep to what Python 2.7 and today's
Python both accept.  It trusts no source: names are single components, a path is entered
component by component without following links, and every file is written under a temporary name
and renamed when it is complete.

Messages are tuples that start with a code, or bytes, which are a piece of a large file.  The
source announces entries in ``LIST``; an entry's id is its place in the order of announcement.
The target asks for files with ``WANT`` (nothing to build on), ``CHECK`` (small, same size,
here is my digest), ``DELTA`` (large, ``DIGESTS`` of my blocks follow; see ``bases``) and ``REST``
(an earlier run left the beginning), and gets its answers in the order of its requests: ``FILES``
(many small ones), ``OPEN``, bytes and ``COPY``, ``CLOSE`` (a large one), ``SAME`` or ``FAIL``.
``ACK`` says how much has been processed, so that the source can bound what is in transit.  For a
link that cannot be made, ``NOLINK`` asks for a copy, which comes as ``INSTEAD``.  Start at
``Target.run``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque

from . import wire
from .linking import Linking
from .messages import FROM_SOURCE, checked, fits, is_bytes, is_count, is_mode, is_time
from .places import (
    REFUSALS,
    SEP,
    Directory,
    Places,
    at,
    chmod_same,
    make_directories,
    names_beginning,
    names_in,
    path_of,
    same_time,
)
from .requests import Fatal
from .spelling import Spellings
from .temps import PREFIX, parts_of, tag_in, tag_of
from .wire import SMALL_MAX, Violation, numbers, reason_of, widen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ...gateway_base import Channel
    from .places import Entry, Handle, Identity
    from .requests import Look
    from .rules import Rules
    from .spelling import Spelling
    from .wire import Numbers, Options, PackedUnit, Say

BASES_BYTES = 256 * 1024 * 1024  # of old files whose new versions are awaited, unless one alone
BASES_MAX = 8  # each is an open file
BAD_NAMES = frozenset([b"", b".", b".."])
# what else is announced of an entry, by its kind
EXTRAS = {wire.HARDLINK: is_count, wire.SYMLINK: is_bytes, wire.ROOTED: is_bytes}


def room_at(path: bytes) -> float:
    """Return the bytes of the file system that a path is or will be in, used ones as well."""
    if not hasattr(os, "statvfs"):  # Windows, where files have holes only if they are asked for
        return float("inf")
    while not os.path.exists(path):
        path = os.path.dirname(path)
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize or float("inf")  # some tell nothing


def next_in(channel: Channel) -> list[object]:
    """Return a list of the next item of a channel, an empty one if none has arrived."""
    try:
        return [channel.receive(0)]
    except channel.TimeoutError:
        return []


def bounds_of(values: Sequence[int]) -> tuple[int, ...]:
    return (min(values), max(values)) if values else ()


class Target(Linking):
    """The receiving end of one synchronisation; used by one thread.

    send: takes a message for the source.  options: ``dest`` (path), ``root`` (kind, mode, time),
    ``name`` of a source that is a file, ``hashes`` with their cost to the source, ``expanduser``
    for ``dest``, ``delete``, ``rules`` for what stays then, and ``asks``, whether to ask the
    source what else stays; ``dry_run``; ``modes``, ``times`` and ``owners``, whether they are
    preserved, and ``window_ns``; ``mask``, bits dropped from modes; ``links``, which are made:
    "as-is" (all), "inside" (those that cannot lead out of the tree) or "none"; ``partial``,
    whether parts of large files are kept when a run ends early, and used by the next;
    ``max_files`` and ``max_bytes``, how much may be announced, None for any amount;
    ``is_bounded``, whether a file has to fit into the file system, free or not; and where the
    source is, see ``apart``: ``source``, ``is_left_out``, ``keeps_apart``.
    """

    def __init__(self, send: Say, options: Options) -> None:
        Linking.__init__(self, send, options)
        self._root = options["root"]
        self._name = options["name"]
        self._is_directory_meant = options["dest"].endswith((b"/", SEP))
        self.announced_by: Rules | None = None  # rules that a source which is not trusted keeps to
        # announcements
        self._only_name: bytes | None = None  # of a source that is a single file
        self._units: deque[PackedUnit | int] = deque()  # not yet processed; an int acknowledges
        self._unit: Iterator[bool] | None = None  # the one that is being processed
        self._directories: dict[int, Directory] = {}
        self._unlisted = 0  # directories whose entries are still to come
        self._listing: Directory | None = None  # the directory whose entries are coming now
        self._spellings = Spellings(self._places, self._temps, self._dry_run)
        self._spelling: Spelling | None = None  # of it, where several names can be one file
        self._seen: set[bytes] = set()  # names announced in it
        self._is_listed = False  # all was announced
        self._has_told_total = False
        self._is_bounded = options["is_bounded"]
        self._room: float | None = None  # bytes of the file system; None: not known yet
        self._inodes: set[Identity] = set()  # of old files with names that were announced
        self._makers: dict[int, Callable[..., object]] = {
            wire.FILE: self._on_file,
            wire.LEADER: self._on_leader,
            wire.HARDLINK: self._on_hardlink,
            wire.SYMLINK: self._on_symlink,
            wire.ROOTED: self._on_rooted,
            wire.DIRECTORY: self._on_directory,
        }
        self._handlers: dict[int, Callable[..., object]] = {
            wire.LIST: self._on_list,
            wire.LIST_END: self._on_list_end,
            wire.OWNERS: self._on_owners,
            wire.FILES: self._on_files,
            wire.GO: self._on_go,
            wire.SEEK: self._on_seek,
            wire.DIFFERS: self._on_differs,
            wire.OPEN: self._on_open,
            wire.COPY: self._on_copy,
            wire.HOLE: self._on_hole,
            wire.PACKED: self._on_packed,
            wire.CLOSE: self._on_close,
            wire.SAME: self._on_same,
            wire.FAIL: self._on_fail,
            wire.INSTEAD: self._on_instead,
            wire.REMARK: self._on_remark,
            wire.SPARED: self._on_spared,
            wire.GONE: self._on_gone,
        }

    def run(self, receive: Callable[[], object], look: Look = list) -> None:
        """Work until everything announced is there; raises what ``receive`` and ``look`` raise.

        look: returns a list of the next message, or an empty one if that would mean to wait.
        """
        self._look = look
        try:
            self._make_root()
            while not self._is_finished():
                message = self._early.popleft() if self._early else receive()
                if isinstance(message, bytes):
                    if len(message) < wire.PIECE.size:
                        raise Violation("a piece of %d bytes" % len(message))
                    number, offset = wire.PIECE.unpack_from(message)
                    self._on_piece(number, offset, memoryview(message)[wire.PIECE.size :])
                else:
                    parts = checked(message, FROM_SOURCE)
                    self._handlers[parts[0]](*parts[1:])
                self._work()
                self._out.flush()
            self._settle_directories()
            counts = self._unchanged, self._settled, self._deleted
            self._out.say(wire.END, *(counts + self._refusals()))
        except Fatal as exc:
            self._leave()  # before the other half goes on
            self._out.say(wire.FATAL, *exc.args)
        finally:
            self._leave()
            self._places.close()

    def _is_finished(self) -> bool:
        is_looked_at = not (self._units or self._unit or self._unlisted or self._unlinked)
        if not (self._is_listed and is_looked_at):
            return False
        if not self._has_told_total:
            self._has_told_total = True
            self._out.say(wire.LISTED, self._total)
        while self._hardlinks and not self._pending:
            self._link(*self._hardlinks.popleft())
            self._out.flush()
        return not (self._pending or self._questions)

    # the root

    def _make_root(self) -> None:
        if not fits(self._root, (is_count, is_mode, is_time)):
            raise Violation("not a root: %.200r" % (self._root,))
        kind, mode, mtime = self._root
        try:
            self._check_place()
            if kind == wire.DIRECTORY:
                root = Directory(0, None, self._dest, mode & self._directory_bits, mtime)
                root.fresh = self._make_root_directory()
                if not root.fresh or not self._dry_run:
                    self._find_settled(root, os.stat(self._dest))
            elif kind != wire.FILE:
                raise Violation("a source of kind %.100r" % (kind,))
            else:
                parent, self._only_name = self._place_of_file(self._name)
                root = Directory(0, None, parent, None, 0)
                if not os.path.isdir(parent) and not self._dry_run:
                    make_directories(parent)
                there = os.path.lexists(os.path.join(parent, self._only_name))
                root.existing = {self._only_name} if there else set()
        except OSError as exc:
            raise Fatal(0, exc.errno or 0, reason_of(exc))
        self._directories[0] = root
        self._unlisted = 1

    def _make_root_directory(self) -> bool:
        """Make the root if it does not exist; return whether it was made."""
        try:
            found = os.stat(self._dest)
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                raise
            return self._dry_run or make_directories(self._dest)
        if not stat.S_ISDIR(found.st_mode):
            raise OSError(errno.ENOTDIR, "a directory cannot replace a file")
        outer, name = os.path.split(os.path.realpath(self._dest))
        if name and found.st_mode & 0o700 != 0o700:
            self._open_up_root(outer, name, found)
        return False

    def _place_of_file(self, name: bytes) -> tuple[bytes, bytes]:
        """Return (directory, name) of a single file: in the target if that is a directory."""
        if not (self._is_directory_meant or os.path.isdir(self._dest)):
            return os.path.split(self._dest)
        self._check_name(name)
        self._seen = set()
        return self._dest, name

    def _open_up_root(self, outer: bytes, name: bytes, found: os.stat_result) -> None:
        places = Places()
        try:
            self._open_up(places.handle(Directory(0, None, outer, None, 0)), name, found)
        finally:
            places.close()

    def _open_up(self, handle: Handle, name: bytes, found: os.stat_result) -> bool:
        """Make a directory of ours accessible if its mode forbids it; return whether we tried."""
        if found.st_mode & 0o700 == 0o700 or self._dry_run:
            return False
        try:
            chmod_same(handle, name, found, found.st_mode & 0o777 | 0o700)
        except OSError:
            pass  # what needs it will fail with a better message
        return True

    # announcements

    def _on_owners(
        self, first: int, pairs: bytes, users: dict[int, bytes], groups: dict[int, bytes]
    ) -> None:  # fmt: skip
        if self._owners.is_wanted:  # else it is for other targets
            self._owners.learn(first, pairs, users, groups)
            self._directories[0].settled = False  # it was looked at before this came

    def _on_list(self, cost: int, units: list[PackedUnit]) -> None:
        self._units.extend(units)
        self._units.append(cost)

    def _on_list_end(self) -> None:
        self._is_listed = True

    def _work(self) -> None:
        """Process announced entries, until too many old files wait for their new content."""
        while self._bases < BASES_MAX and self._bases_bytes < BASES_BYTES:
            if self._unit is None:
                if not self._units:
                    return
                unit = self._units.popleft()
                if not isinstance(unit, tuple):
                    self._out.list_done += unit
                    continue
                self._unit = self._look_at(*unit)
            if next(self._unit, None) is None:
                self._unit = None

    def _look_at(
        self, number: int, first: int, blob: bytes, kinds: bytes, told_modes: Numbers,
        told_sizes: Numbers, told_times: Numbers, extras: list[int | bytes],
        kept: tuple[bytes, bytes], last: int,
    ) -> Iterator[bool]:  # fmt: skip
        """Process the entries of one unit; yield after each."""
        directory = self._directories.get(number)
        if directory is None:
            raise Violation("entries of directory %d, which was not announced" % number)
        self._begin_listing(directory)
        names = blob.split(b"\0") if kinds else []
        existing, count = directory.existing, len(names)
        self._spelling = self._spellings.with_forms(directory, self._spelling, blob)
        modes, sizes = numbers("H", told_modes, count), numbers("q", told_sizes, count)
        times = numbers("q", told_times, count)
        self._check_unit(first, kinds, modes, sizes, times, extras, count)
        further = iter(extras)
        for place, kind in enumerate(bytearray(kinds)):
            name = names[place] if self._only_name is None else self._only_name
            self._check_name(name)
            if self.announced_by is not None:
                self._check_rules(self.announced_by, path_of(directory, name), kind)
            mode = modes[place] & (
                self._directory_bits if kind == wire.DIRECTORY else self._file_bits
            )
            entry = directory, first + place, name, mode, sizes[place], times[place]
            extra = next(further) if kind in (wire.HARDLINK, wire.SYMLINK, wire.ROOTED) else None
            if self._spelling is not None:
                name, other = self._spelling.take(name)
                self._seen.add(name)
                if other is not None:
                    self._leave_out(entry, kind, other)
                    continue
                entry = entry[:2] + (name,) + entry[3:]
            there = existing is not None and not directory.broken and name in existing
            self._try(self._makers[kind], entry, there, extra)
            yield True
        self._keep_names(kept if self._asks else kept[:1])
        if last != wire.MORE:
            self._end_listing(directory, last == wire.COMPLETE)

    def _keep_names(self, kept: tuple[bytes, ...]) -> None:
        """Note the names of what is not sent, and has to stay all the same."""
        for names in kept:
            for name in names.split(b"\0") if names else ():
                self._check_name(name)
                if self._spelling is not None:
                    self._seen.add(self._spelling.take(name)[0])

    def _check_unit(
        self, first: int, kinds: bytes, modes: Sequence[int], sizes: Sequence[int],
        times: Sequence[int], extras: list[int | bytes], count: int,
    ) -> None:  # fmt: skip
        """Refuse a unit that is inconsistent, or that exceeds the limits."""
        of_extras = [EXTRAS[kind] for kind in bytearray(kinds) if kind in EXTRAS]
        if (
            len(kinds) != count
            or not set(bytearray(kinds)) <= set(self._makers)
            or len(of_extras) != len(extras)
            or not all(kind(extra) for kind, extra in zip(of_extras, extras))
            or not all(is_mode(mode) for mode in bounds_of(modes))
            or not all(is_count(size) for size in bounds_of(sizes))
            or not all(is_time(mtime) for mtime in bounds_of(times))
            or (self._only_name is not None and bytearray(kinds) != bytearray([wire.FILE]))
        ):
            raise Violation("inconsistent entries: %.200r" % (kinds,))
        self._announced.add(first, count, sum(sizes))

    def _begin_listing(self, directory: Directory) -> None:
        if directory is self._listing:
            return
        if self._listing is not None or directory.listed:
            raise Violation("entries of a directory that was announced before")
        self._listing = directory
        self._leftovers = {}
        if self._only_name is not None:
            self._find_left_of_file(directory, self._only_name)
        elif directory.fresh:
            directory.existing = set()
        elif directory.existing is None and not directory.broken:
            try:
                names = names_in(self._places.handle(directory))
                directory.existing = names
                self._leftovers = self._left_in(directory, names) if self._is_resumed else {}
            except OSError as exc:
                directory.broken = True
                self._note(directory.entry(), exc)
        self._spelling = self._spellings.of(directory)

    def _find_left_of_file(self, directory: Directory, name: bytes) -> None:
        """Find what earlier runs left of a source that is a single file."""
        try:
            names = names_beginning(self._places.handle(directory), PREFIX)
        except OSError:  # writing there will fail as well, and in a dry run it may not be there
            return
        own = (b"", tag_of(name)[:-8])
        there = (directory.existing or set()) | {name for name in names if tag_in(name)[:-8] in own}
        directory.existing = there
        self._leftovers = self._left_in(directory, there) if self._is_resumed else {}

    def _leave_out(self, entry: Entry, kind: int, other: bytes) -> None:
        """Report an entry whose name means the same file as another one's here."""
        self.skip(entry, b"has the same name on this file system as " + other)
        if kind == wire.DIRECTORY:  # its entries will come all the same
            self._add_directory(entry).broken = True

    def _left_in(self, directory: Directory, there: set[bytes]) -> dict[bytes, bytes]:
        """Return {tag without version: name} of unfinished files of earlier runs in a directory."""
        names = [name for name in there if tag_in(name) and parts_of(name)]
        return {tag_in(name)[:-8]: name for name in names if self._is_left_over(directory, name)}

    def _check_name(self, name: bytes) -> None:
        if name in BAD_NAMES or b"/" in name or SEP in name or name in self._seen:
            raise Violation("not a name, or announced twice: %r" % (name,))
        if os.name == "nt" and b":" in name:
            raise Violation("not a name on Windows: %r" % (name,))
        self._seen.add(name)

    def _check_rules(self, rules: Rules, path: bytes, kind: int) -> None:
        if self._only_name is None and rules.leaves_out(path, kind == wire.DIRECTORY):
            raise Violation("announced an entry that the rules leave out: %.1000r" % (path,))

    def _end_listing(self, directory: Directory, is_complete: bool) -> None:
        if directory.existing is not None and not directory.broken:
            is_ours = directory.mode is not None
            self._sweep(directory, directory.existing - self._seen, is_complete and is_ours)
        directory.listed = True
        directory.existing = None
        self._listing = None
        self._seen = set()
        self._unlisted -= 1

    def _try(self, maker: Callable[..., object], entry: Entry, *args: object) -> None:
        """Process one entry; what the host refuses is noted, and the rest goes on."""
        try:
            if not entry[0].broken:
                maker(entry, *args)
                return
        except (OSError, RuntimeError) as exc:
            self._note(entry, exc)
        if maker == self._on_directory:  # its entries will come all the same
            self._add_directory(entry).broken = True

    def _on_directory(self, entry: Entry, there: bool, _: object = None) -> None:
        parent, _, name = entry[:3]
        if not there and self._dry_run:
            self._add_directory(entry).fresh = True
            self.plan(entry)
            return
        path, where = at(self._places.handle(parent), name)
        found = os.lstat(path, **where) if there else None
        if found is not None and stat.S_ISDIR(found.st_mode):
            opened = self._open_up(self._places.handle(parent), name, found)
            directory = self._add_directory(entry)
            self._find_settled(directory, found)
            directory.settled = directory.settled and not opened
            return
        if self._dry_run:
            self.plan(entry)
            if found is not None:
                self.plan_deletion(path_of(parent, name))
        else:
            parent.settled = False
            mode = 0o700 if self._keeps_modes else entry[3] | 0o700
            if not self._make_directory(parent, name, found, mode):
                self._on_directory(entry, True)
                return
        directory = self._add_directory(entry)
        directory.fresh = True
        if not (self._keeps_modes or self._dry_run):
            self._find_settled(directory, os.lstat(path, **where))

    def _find_settled(self, directory: Directory, found: os.stat_result) -> None:
        """Find out whether an existing directory has the mode and time that it should."""
        if not self._keeps_modes:
            directory.mode = stat.S_IMODE(found.st_mode)
        is_right = not self._keeps_times or same_time(found, directory.mtime)
        is_right = is_right and self._owners.is_right(directory.number, found)
        directory.settled = is_right and stat.S_IMODE(found.st_mode) == directory.mode

    def _add_directory(self, entry: Entry) -> Directory:
        parent, number, name, mode, _, mtime = entry
        if number in self._directories:
            raise Violation("directory %d was announced twice" % number)
        directory = Directory(number, parent, name, mode, mtime)
        self._directories[number] = directory
        self._unlisted += 1
        return directory

    def _on_leader(self, entry: Entry, there: bool, _: object = None) -> None:
        self._leaders[entry[1]] = entry[0], entry[2]
        self._on_file(entry, there)

    def _on_file(self, entry: Entry, there: bool, _: object = None) -> None:
        directory, _, name, _, size, mtime = entry
        is_large = size > SMALL_MAX
        if is_large and self._is_bounded and self._is_too_large(size):
            self.skip(entry, b"is larger than the whole file system, so max_bytes= has to allow it")
            return
        if not there:
            if not (is_large and self._leftovers and self._has_left(entry)):
                self._ask(wire.WANT, entry)
            return
        path, where = at(self._places.handle(directory), name)
        found = os.lstat(path, **where)
        same_size = found.st_size == size
        if not stat.S_ISREG(found.st_mode):
            if self._may_replace(entry, found, self._on_file, there):
                self._ask(wire.WANT, entry)
        elif (
            same_size
            and (same_time(found, mtime) or self._is_near(directory, found, mtime))
            and self._is_alone(found)
        ):
            self._settle_content(entry, found)
        elif self._dry_run:
            self._ask(wire.WANT, entry)
        elif is_large and self._leftovers and found.st_nlink == 1 and self._has_left(entry):
            pass
        elif is_large and found.st_size > SMALL_MAX:
            self._ask_for_blocks(entry, path, where)
        elif same_size and size <= SMALL_MAX and found.st_nlink == 1:
            self._ask_with_digest(entry, path, where)
        else:
            self._ask(wire.WANT, entry)

    def _is_too_large(self, size: int) -> bool:
        """Return whether only holes, which cost a source nothing, would let a file be here."""
        if self._room is None:
            self._room = room_at(self._dest)
        return bool(size > self._room)

    def _is_alone(self, found: os.stat_result) -> bool:
        """Return whether no other announced name is the same file."""
        if found.st_nlink == 1:
            return True
        inode = found.st_dev, found.st_ino
        is_alone = inode not in self._inodes
        self._inodes.add(inode)
        return is_alone

    def _settle_content(self, entry: Entry, found: os.stat_result) -> None:
        """Set what is to be set of an old file of which the content stays."""
        is_owned = self._owners.is_right(entry[1], found)
        is_mode = stat.S_IMODE(found.st_mode) == entry[3] or not self._keeps_modes
        if is_mode and is_owned:
            self._unchanged += 1
        elif found.st_nlink == 1:
            self._set_attributes(entry, found)
        elif is_mode and self._owners.may_be_refused():  # of a new file as well
            self._owners.refused += 1
            self._unchanged += 1
        else:
            self._ask(wire.WANT, entry)  # its other names are not ours to change

    def _set_attributes(self, entry: Entry, found: os.stat_result) -> None:
        self._settled += 1
        if self._dry_run:
            self.plan(entry)
            return
        handle = self._places.handle(entry[0])
        found = self._owners.give_same(entry[1], handle, entry[2], found)
        if not self._keeps_modes or stat.S_IMODE(found.st_mode) == entry[3]:
            return
        try:
            found = chmod_same(handle, entry[2], found, entry[3])
        except OSError as exc:
            if exc.errno not in REFUSALS:
                raise
        self._count_refused_mode(found, entry[3])

    # the end

    def _settle_directories(self) -> None:
        """Set times, owners and modes of directories, innermost first."""
        for number in sorted(self._directories, reverse=True):
            directory = self._directories[number]
            if directory.settled or directory.broken or directory.mode is None or self._dry_run:
                continue
            try:
                handle = self._places.handle(directory)
                found = self._settle_time(directory, handle)
                found = self._give_directory(directory.number, handle, found)
                if stat.S_IMODE(found.st_mode) != directory.mode:
                    try:
                        os.chmod(handle, directory.mode)
                    except OSError as exc:
                        if exc.errno not in REFUSALS:
                            raise
                    self._count_refused_mode(os.stat(handle), directory.mode)
            except OSError as exc:
                self._note(directory.entry(), exc)

    def _give_directory(self, number: int, handle: Handle, found: os.stat_result) -> os.stat_result:
        def chown(user: int, group: int) -> None:
            os.chown(handle, user, group)

        return self._owners.give(number, found, chown, lambda: os.stat(handle))


def main(channel: Channel) -> None:
    """Serve one source: the first item says what it wants, then its messages follow."""
    widen(channel.gateway._io, "infile")
    Target(channel.send, channel.receive()).run(channel.receive, lambda: next_in(channel))
