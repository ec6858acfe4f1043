"""Links of a target: made like files, under a temporary name first.

This file is shipped: it keeps to what Python 2.7 and today's Python both accept.
Start at ``Linking``.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections import deque

from .messages import Announced
from .places import HAS_NS, SEP, at, depth_of, path_of, set_link_time, time_of
from .sweeping import Sweeping
from .wire import DIRECTORY, FILE, NOLINK, Violation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .places import Directory, Entry
    from .temps import Maker
    from .wire import Options, Say

# PyPy passes a flag that the kernel refuses; so we check afterwards what was linked
IS_PYPY = "__pypy__" in sys.builtin_module_names
LINK_OPTIONS: dict[str, bool] = {} if IS_PYPY else {"follow_symlinks": False}
LINK_ERRORS = (OSError, NotImplementedError, AttributeError)


NO_LINKS = b"links are left out"
OUTSIDE = b"a link that leads, or may lead, out of the tree"


def leads_inside(depth: int, text: bytes) -> bool:
    """Return whether a link this many directories deep stays in the tree.

    It may first go up, then only down: whatever it passes through may be a link, and going up from
    there leads elsewhere.
    """
    if os.name == "nt":
        text = text.replace(SEP, b"/")
    if text.startswith(b"/") or (os.name == "nt" and b":" in text):
        return False
    parts = [part for part in text.split(b"/") if part not in (b"", b".")]
    while parts and parts[0] == b"..":
        parts.pop(0)
        depth -= 1
    return depth >= 0 and b".." not in parts


def stays_inside(text: bytes) -> bool:
    """Return whether a path never rises above where it began, unless it meets a link."""
    depth = 0
    for part in text.replace(SEP, b"/").split(b"/"):
        if part not in (b"", b"."):
            depth += -1 if part == b".." else 1
        if depth < 0:
            return False
    return True


def link_maker(text: bytes) -> Maker[None]:
    """Return a function that makes a link at a path."""
    return lambda path, **where: os.symlink(text, path, **where)


class Linking(Sweeping):
    """Makes links, and asks for a copy where the host cannot make them."""

    def __init__(self, send: Say, options: Options) -> None:
        Sweeping.__init__(self, send, options)
        self._announced = Announced(options["max_files"], options["max_bytes"])
        # made once all of their leaders are there
        self._hardlinks: deque[tuple[Entry, bool, int]] = deque()
        self._links = options["links"]
        self._makes_links: bool | None = None  # whether the host does; None: not known yet
        self._links_refused = 0  # links and hard links that became copies
        # kind -> what is called for an entry; see ``Target``
        self._makers: dict[int, Callable[..., object]] = {}

    def _refusals(self) -> tuple[int, int, int, int]:
        """Return for how many entries the host could not set times, modes, owners and links."""
        times, modes = self._times_refused, self._modes_refused
        return times, modes, self._owners.refused, self._links_refused

    def _on_rooted(self, entry: Entry, there: bool, text: bytes) -> None:
        inner = text.lstrip(b"/" + SEP)
        if b"\0" in text or (text and inner == text) or not stays_inside(inner):
            raise Violation("not a place in the tree: %.1000r" % (text,))
        if self._links == "none":
            self.skip(entry, NO_LINKS)
        elif self._links == "inside" and not leads_inside(0, inner):
            self.skip(entry, OUTSIDE)
        else:
            self._make_link(entry, there, self._dest + text)

    def _on_symlink(self, entry: Entry, there: bool, text: bytes) -> None:
        if b"\0" in text or not text:
            raise Violation("not the text of a link: %.1000r" % (text,))
        if self._links == "none":
            self.skip(entry, NO_LINKS)
        elif self._links == "inside" and not leads_inside(depth_of(entry[0]), text):
            self.skip(entry, OUTSIDE)
        else:
            self._make_link(entry, there, text)

    def _make_link(self, entry: Entry, there: bool, text: bytes) -> None:
        directory, number, name, _, _, mtime = entry
        path, where = at(self._places.handle(directory), name) if there else (b"", {})
        found = os.lstat(path, **where) if there else None
        is_link = found is not None and stat.S_ISLNK(found.st_mode)
        if is_link and self._dry_run:
            self._makes_links = True
        if found is not None and is_link and os.readlink(path, **where) == text:
            self._unchanged += 1
            if HAS_NS and found.st_mtime_ns != mtime and not self._dry_run:
                self._set_link_time(directory, name, mtime)
            if not self._dry_run:
                self._owners.give_link(number, self._places.handle(directory), name, found)
            return
        if found is not None and not is_link:
            # it may be the copy that an earlier run has made
            if not self._can_link(directory, found, text):
                self._ask_for_copy(entry)
                return
            if not self._may_replace(entry, found, self._make_link, there, text):
                return
        if self._dry_run:
            self.plan(entry)
            return
        try:
            _, temp = self._temps.make(directory, link_maker(text))
        except LINK_ERRORS:
            self._ask_for_copy(entry)
            return
        directory.settled = False
        self._set_link_time(directory, temp, mtime)
        if self._owners.is_wanted:
            handle = self._places.handle(directory)
            path, where = at(handle, temp)
            self._owners.give_link(number, handle, temp, os.lstat(path, **where))
        self._place(entry, temp)

    def _can_link(self, directory: Directory, found: os.stat_result, text: bytes) -> bool:
        """Return whether links can be made here; a dry run can only judge by what it finds.

        found: of what is there, which is no link.  text: of the link that should be there.
        """
        if self._makes_links is None and self._dry_run:
            if self._is_like_target(directory, found, text):
                self._makes_links = False
        elif self._makes_links is None:
            try:
                _, temp = self._temps.make(directory, link_maker(b"-"))
            except LINK_ERRORS:
                self._makes_links = False
            else:
                self._temps.drop(temp)
                directory.settled, self._makes_links = False, True
        return self._makes_links is not False

    def _is_like_target(self, directory: Directory, found: os.stat_result, text: bytes) -> bool:
        """Return whether something has the kind, size and time of what a link points to here."""
        path = os.path.join(self._dest, path_of(directory.parent, directory.name), text)
        path = os.path.normpath(path)
        if not path.startswith(self._dest.rstrip(SEP) + SEP):
            return False
        try:
            other = os.lstat(path)
        except OSError:
            return False
        is_file = stat.S_ISREG(found.st_mode)
        return (
            stat.S_IFMT(other.st_mode) == stat.S_IFMT(found.st_mode)
            and (other.st_size == found.st_size or not is_file)
            and time_of(other) == time_of(found)
        )

    def _ask_for_copy(self, entry: Entry) -> None:
        directory, number, name = entry[:3]
        self._unlinked[number] = directory, name
        self._out.say(NOLINK, number)

    def _set_link_time(self, directory: Directory, name: bytes, mtime: int) -> None:
        if HAS_NS and self._keeps_times and os.utime in os.supports_follow_symlinks:
            try:
                set_link_time(self._places.handle(directory), name, mtime)
            except (OSError, NotImplementedError):
                pass  # a link's time is of no importance

    def _on_instead(
        self, number: int, kind: int, new_number: int, mode: int, size: int, mtime: int
    ) -> None:  # fmt: skip
        """Accept a file or directory in place of a link that cannot be made."""
        if kind not in (FILE, DIRECTORY) or number not in self._unlinked:
            raise Violation("kind %.100r in place of entry %.100r" % (kind, number))
        self._announced.add(new_number, 1, size)
        self._links_refused += 1
        directory, name = self._unlinked.pop(number)
        try:
            path, where = at(self._places.handle(directory), name)
            os.lstat(path, **where)
            there = True
        except OSError:
            there = False
        mode &= self._directory_bits if kind == DIRECTORY else self._file_bits
        entry = directory, new_number, name, mode, size, mtime
        self._try(self._makers[kind], entry, there, None)

    def _on_hardlink(self, entry: Entry, there: bool, leader: int) -> None:
        self._hardlinks.append((entry, there, leader))

    def _link(self, entry: Entry, there: bool, leader: int) -> None:
        """Make a hard link to a file that has arrived by now, or ask for the content."""
        directory, _, name = entry[:3]
        try:
            source, source_name = self._leaders[leader]
            if there and self._is_linked(directory, name, source, source_name):
                self._unchanged += 1
                return
            if there and not self._may_lose(entry, there, leader):
                return
            if self._dry_run:
                self.plan(entry)
                return
            _, temp = self._temps.make(directory, self._linker(source, source_name))
            directory.settled = False
            if not self._is_linked(directory, temp, source, source_name):
                self._temps.drop(temp)
                raise OSError(errno.ELOOP, "became a link")
            self._place(entry, temp)
            self._settled += 1
        except (OSError, KeyError, AttributeError, NotImplementedError):
            self._links_refused += self._has_arrived(leader)  # else it was not the link that failed
            self._try(self._makers[FILE], entry, there, None)

    def _has_arrived(self, leader: int) -> bool:
        try:
            source, name = self._leaders[leader]
            path, where = at(self._places.handle(source), name)
            return stat.S_ISREG(os.lstat(path, **where).st_mode)
        except (OSError, KeyError):
            return False

    def _may_lose(self, entry: Entry, there: bool, leader: int) -> bool:
        """Return whether a file may replace what has its name now; note it if not."""
        path, where = at(self._places.handle(entry[0]), entry[2])
        found = os.lstat(path, **where)
        if stat.S_ISREG(found.st_mode):
            return True
        return self._may_replace(entry, found, self._on_hardlink, there, leader)

    def _is_linked(
        self, directory: Directory, name: bytes, source: Directory, source_name: bytes
    ) -> bool:  # fmt: skip
        """Return whether two names are already one file; then renaming would do nothing."""
        path, where = at(self._places.handle(directory), name)
        found = os.lstat(path, **where)
        path, where = at(self._places.handle(source), source_name)
        first = os.lstat(path, **where)
        return bool((found.st_dev, found.st_ino) == (first.st_dev, first.st_ino))

    def _linker(self, source: Directory, source_name: bytes) -> Maker[None]:
        """Return a function that makes a hard link to a file at a path."""

        def link(path: bytes, **where: int) -> None:
            old, old_where = at(self._places.handle(source), source_name)
            if where:
                there, here = old_where["dir_fd"], where["dir_fd"]
                os.link(old, path, src_dir_fd=there, dst_dir_fd=here, **LINK_OPTIONS)
            else:
                os.link(old, path)

        return link
