"""Waits for changes below a directory: with inotify where the system has it, else by polling.

Start at ``changes``.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

_MASK = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200  # IN_MODIFY ... IN_DELETE
_ONLY_DIRECTORIES = 0x01000000  # IN_ONLYDIR
_LOOK_S = 1.0  # between looks, where there is no inotify
_QUIET_S = 0.05  # how long it must be quiet before a change is reported: many come at once


def changes(path: str, stop: Stop | None = None) -> Iterator[None]:
    """Yield once at first, and then each time something has changed below a path.

    stop: ends it from another thread.
    """
    yield None
    with ExitStack() as stack:
        stop = stop or stack.enter_context(closing(Stop()))
        try:
            watch: Any = _Inotify(path, stop)
        except OSError:
            watch = _Looks(path, stop)
        stack.enter_context(watch)
        while not stop.is_set():
            yield None  # what changed before it was watched
            watch.wait()


class Stop(threading.Event):
    """Ends ``changes``; ``close`` it after that has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.reader, self._writer = os.pipe()

    def set(self) -> None:
        """End it."""
        super().set()
        os.write(self._writer, b"x")

    def close(self) -> None:
        """Close its descriptors."""
        os.close(self.reader)
        os.close(self._writer)


class _Inotify:
    """The kernel's notifications about a file, or a directory and everything below it."""

    def __init__(self, path: str, stop: Stop) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError("this system has no inotify")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._path = path
        self._stop = stop
        self._fd = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        try:
            self._add_all()
        except OSError:
            os.close(self._fd)
            raise

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def _add_all(self) -> None:
        if not os.path.isdir(self._path):
            self._add(os.path.dirname(os.path.abspath(self._path)))
            return
        for folder, _, _ in os.walk(self._path):
            self._add(folder)

    def _add(self, folder: str) -> None:
        """Watch a directory, even if it is watched already; one that is gone does not matter."""
        mask = _MASK | _ONLY_DIRECTORIES
        if self._libc.inotify_add_watch(self._fd, os.fsencode(folder), mask) < 0:
            code = ctypes.get_errno()
            if os.path.isdir(folder):  # the user has no watches left
                raise OSError(code, os.strerror(code), folder)

    def wait(self) -> None:
        if self._stop.reader in select.select([self._fd, self._stop.reader], [], [])[0]:
            return
        while select.select([self._fd], [], [], _QUIET_S)[0]:
            os.read(self._fd, 65536)
        self._add_all()  # there may be new directories


class _Looks:
    """Looks at a tree again and again."""

    def __init__(self, path: str, stop: Stop) -> None:
        self._path = path
        self._stop = stop
        self._last = self._look()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def _look(self) -> list[Any]:
        found: list[Any] = []
        for folder, _, files in os.walk(self._path):
            for path in [folder, *(os.path.join(folder, name) for name in files)]:
                found.append((path, _status(path)))
        return found or [_status(self._path)]

    def wait(self) -> None:
        now = self._look()
        while now == self._last and not self._stop.wait(_LOOK_S):
            now = self._look()
        self._last = now


def _status(path: str) -> Any:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_mode, found.st_ino
