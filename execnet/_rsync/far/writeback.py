"""Has the system write a new file to the disk while the rest of it is still to come.

A file that replaces another one has to be written first, or a crash leaves an empty one: ext4 does
that in the rename, which takes a third of the time that a large file with one changed byte takes.
This begins earlier where Linux can be asked to, and promises nothing: what it has not begun, the
rename does.

This file is shipped: it keeps to what Python 2.7 and today's Python both accept.
Start at ``Writeback``.
"""

from __future__ import annotations

import os
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# What is asked for at once: no page of memory, however large, reaches beyond a multiple of it.
STEP_BYTES = 8 * 1024 * 1024
WAIT_BEFORE, WRITE = 1, 2  # SYNC_FILE_RANGE_WAIT_BEFORE and SYNC_FILE_RANGE_WRITE of Linux


def syncer() -> Callable[[int, int, int, int], int] | None:
    """Return a function like ``sync_file_range`` of Linux, or None where there is none.

    It returns an error's number, 0 for none.
    """
    try:
        import ctypes  # the standard library offers no other way

        call = ctypes.CDLL(None, use_errno=True).sync_file_range
        call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    except (ImportError, AttributeError, OSError, TypeError):
        return None

    def sync(fd: int, offset: int, length: int, flags: int) -> int:
        return ctypes.get_errno() if call(fd, offset, length, flags) else 0

    return sync


class Writeback(object):
    """Writes a file that is being made, from its beginning on.  A thread waits for the disk.

    Only what is complete is written: the rename would pass over a page that was changed while it
    was on its way to the disk.  What is changed later all the same has to wait for that.

    Used by one thread, which takes no lock: an interrupt could leave it taken.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._end = 0  # of what is complete
        self._wanted = 0  # up to where the thread is to write
        self._written = 0  # up to where that has begun
        self.is_started = False
        self._sync: Callable[[int, int, int, int], int] | None = None
        self._thread: threading.Thread | None = None
        self._changed = threading.Lock()  # free when the thread has something to look at
        self._is_over = False

    def start(self) -> None:
        """Write what is complete, and from now on what ``reach`` says."""
        if self.is_started:
            return
        self.is_started = True
        self._sync = syncer()
        if self._sync is not None:
            self._thread = threading.Thread(target=self._run, name="execnet-rsync-writeback")
            self._thread.daemon = True
            self._thread.start()
            self.reach(self._end)

    def reach(self, end: int) -> None:
        """Note that the file is complete up to there."""
        self._end = end
        if self._thread is not None and end - self._wanted >= STEP_BYTES:
            self._wanted = end - end % STEP_BYTES
            self._wake()

    def finish(self) -> None:
        """Wait until what is to be written has begun; the rename would wait for that, too."""
        if self._thread is not None:
            self._is_over = True
            self._wake()
            self._thread.join()
            self._thread = None

    def give_up(self) -> None:
        """Write no more.  The file may be closed, or emptied, after this."""
        if self._thread is not None:
            self._wanted = 0
            self.finish()
        self._end = self._written = 0

    def before_change(self, offset: int, length: int) -> None:
        """Wait until a part that is going to change is not on its way; after ``finish`` only."""
        if self._sync is not None and offset < self._written:
            error = self._sync(self._fd, offset, length, WAIT_BEFORE)
            if error:
                raise OSError(error, os.strerror(error))

    def _run(self) -> None:
        sync = self._sync
        while sync is not None and self._has_more():
            if sync(self._fd, self._written, STEP_BYTES, WRITE):
                return  # the rename says what is wrong
            self._written += STEP_BYTES

    def _has_more(self) -> bool:
        """Wait until there is more to write; return whether there will be any."""
        while self._written >= self._wanted and not self._is_over:
            self._changed.acquire()
        return bool(self._written < self._wanted)

    def _wake(self) -> None:
        try:
            self._changed.release()
        except threading.ThreadError:  # it is free
            pass
