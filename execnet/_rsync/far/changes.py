"""Waits for changes below a directory: with inotify where the system has it, else by polling.

This file is shipped: it keeps to what Python 2.7 and today's Python both accept.  Start at
``changes``.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys
import threading

from .tree import mtime_of
from .wire import clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...gateway_base import Channel


_MASK = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x800  # IN_MODIFY ... IN_MOVE_SELF
_ONLY_DIRECTORIES = 0x01000000  # IN_ONLYDIR
_CLOEXEC_AND_NONBLOCK = 0o2000000 | 0o4000
_LOOK_S = 1.0  # between looks, where there is no inotify
_QUIET_S = 0.05  # how long it must be quiet before a change is reported: many come at once
_LATEST_S = 1.0  # after which it is reported even if more keep coming, as in a busy log


def changes(path: str, stop: Stop | None = None) -> Iterator[None]:
    """Yield once at first, and then each time something has changed below a path.

    stop: a ``Stop`` with which another thread can end it.
    """
    yield None
    used = Stop() if stop is None else stop
    try:
        watch = _watch(path, used)
        try:
            while not used.is_set():
                yield None  # what changed before it was watched
                try:
                    watch.wait()
                except OSError:  # no watches are left for new directories
                    watch.close()
                    watch = _Looks(path, used)
        finally:
            watch.close()
    finally:
        if stop is None:
            used.close()


def _watch(path: str, stop: Stop) -> _Inotify | _Looks:
    try:
        return _Inotify(path, stop)
    except OSError:
        return _Looks(path, stop)


class Stop(object):
    """Ends ``changes``; ``close`` it after that has ended."""

    def __init__(self) -> None:
        self._is_set = threading.Event()
        self.is_set = self._is_set.is_set
        self.wait = self._is_set.wait
        self.reader, self._writer = os.pipe()

    def set(self) -> None:
        """End it."""
        self._is_set.set()
        os.write(self._writer, b"x")

    def close(self) -> None:
        """Close its descriptors."""
        os.close(self.reader)
        os.close(self._writer)


class _Inotify(object):
    """The kernel's notifications about a file, or a directory and everything below it."""

    def __init__(self, path: str, stop: Stop) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError("this system has no inotify")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._path = path
        self._stop = stop
        self._fd = self._libc.inotify_init1(_CLOEXEC_AND_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        try:
            self._add_all()
        except OSError:
            os.close(self._fd)
            raise

    def close(self) -> None:
        os.close(self._fd)

    def _add_all(self) -> None:
        if not os.path.isdir(self._path):
            self._add(os.path.dirname(os.path.abspath(self._path)))
            return
        for folder, _, _ in os.walk(self._path):
            self._add(folder)

    def _add(self, folder: str | bytes) -> None:
        """Watch a directory, even if it is watched already; one that is gone does not matter."""
        name = folder if isinstance(folder, bytes) else os.fsencode(folder)
        if self._libc.inotify_add_watch(self._fd, name, _MASK | _ONLY_DIRECTORIES) < 0:
            code = ctypes.get_errno()
            if os.path.isdir(folder):  # the user has no watches left
                raise OSError(code, os.strerror(code), folder)

    def wait(self) -> None:
        if self._stop.reader in select.select([self._fd, self._stop.reader], [], [])[0]:
            return
        latest = clock() + _LATEST_S
        while select.select([self._fd], [], [], _QUIET_S)[0] and clock() < latest:
            os.read(self._fd, 65536)
        self._add_all()  # there may be new directories


class _Looks(object):
    """Looks at a tree again and again."""

    def __init__(self, path: str, stop: Stop) -> None:
        self._path = path
        self._stop = stop
        self._last = self._look()

    def close(self) -> None:
        pass

    def _look(self) -> list[object]:
        found: list[object] = []
        for folder, _, files in os.walk(self._path):
            for path in [folder] + [os.path.join(folder, name) for name in files]:
                found.append((path, _status(path)))
        return found or [_status(self._path)]

    def wait(self) -> None:
        now = self._look()
        while now == self._last and not self._stop.wait(_LOOK_S):
            now = self._look()
        self._last = now


def _status(path: str) -> tuple[int, int, int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return mtime_of(found), found.st_size, found.st_mode, found.st_ino


def main(channel: Channel) -> None:
    """Say when something has changed below a path, which comes first; each item asks for more."""
    path = os.path.expanduser(channel.receive())
    stop, wanted = Stop(), threading.Event()

    def take(item: object) -> None:
        if item is None:  # the channel is closed
            stop.set()
        wanted.set()

    channel.setcallback(take, endmarker=None)
    try:
        for _ in changes(path, stop):
            if stop.is_set():
                break
            channel.send(True)
            wanted.wait()
            wanted.clear()
    except EOFError:
        pass
