"""Locks between processes, perhaps of several machines that share a home.

They use ``flock``, which the kernel releases however its holder ends.  Where a file system refuses
it, the lock for making something is a folder that names host, boot and process and is renewed while
it is held; which processes use something is not known there.  This file is shipped.  Start at
``Lock``.
"""

from __future__ import annotations

import errno
import io
import os
import threading
import time

from .flocks import Busy, NoLocks, exclusive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

POLL_S = 0.1
RENEW_S = 5.0
STALE_S = 60.0  # a holder on another machine that has not renewed its folder for so long is gone


def host_name() -> str:
    """Return the name of this machine."""
    import socket  # which takes a while, and is not needed to find an environment

    return socket.gethostname()


def boot_id() -> str:
    """Return an id that changes each time this machine boots, "" if it is not known."""
    try:
        with io.open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except EnvironmentError:
        return ""


def identity() -> str:
    """Return what identifies this process: host, boot, process."""
    return u"%s %s %d" % (host_name(), boot_id() or u"-", os.getpid())


class Lock(object):
    """Held by one process at a time; ``with`` holds it.

    deadline: when waiting ends, as ``time.time()``.  on_wait: called once, with the holder.
    check: called while waiting; it raises if waiting has become pointless.
    """

    def __init__(
        self,
        path: str,
        deadline: float,
        on_wait: Callable[[str], object],
        check: Callable[[], object],
    ) -> None:
        self._path = path
        self._deadline = deadline
        self._on_wait = on_wait
        self._check = check
        self._fd: int | None = None
        self._renewer: _Renewer | None = None

    def __enter__(self) -> Lock:
        told = None
        while not self._try():
            holder = self._holder()
            if holder != told:
                self._on_wait(holder)
                told = holder
            if time.time() > self._deadline:
                raise Busy(holder)
            self._check()
            time.sleep(POLL_S)
        return self

    def __exit__(self, *_: object) -> None:
        if self._renewer is not None:
            self._renewer.release()
        if self._fd is not None:
            os.close(self._fd)

    def _try(self) -> bool:
        try:
            self._fd = exclusive(self._path)
        except Busy:
            return False
        except EnvironmentError as exc:
            if exc.errno != errno.ENOENT:
                raise
            os.makedirs(os.path.dirname(self._path), 0o700)  # it was pruned just now
            return False
        except NoLocks:
            self._renewer = take_folder(self._path + ".d")
            return self._renewer is not None
        try:
            os.ftruncate(self._fd, 0)
            os.write(self._fd, identity().encode("utf-8", "replace"))
        except EnvironmentError:  # on a full disk it only can't be told who holds it
            pass
        return True

    def _holder(self) -> str:
        for path in (self._path, os.path.join(self._path + ".d", "owner")):
            try:
                with io.open(path, encoding="utf-8", errors="replace") as file:
                    words = file.read(1000).split()
            except EnvironmentError:
                continue
            if len(words) >= 3:
                return u"process %s on %s" % (words[2], words[0])
        return u"another process"


# ---------------------------------------------------------------- where there is no flock


class _Renewer(object):
    """Keeps renewing a folder that is a lock; ``release`` gives it back."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.daemon = True
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(RENEW_S):
            try:
                os.utime(self._folder, None)
            except OSError:
                return

    def release(self) -> None:
        self._over.set()
        self._thread.join()
        _remove(self._folder)


def take_folder(folder: str) -> _Renewer | None:
    """Make the folder that is a lock, and renew it; None if somebody else has it."""
    try:
        os.mkdir(folder, 0o700)
    except OSError as exc:
        if exc.errno != errno.EEXIST:
            raise
        if not _is_left(folder) or not _move_away(folder):
            return None
        return take_folder(folder)
    try:
        with io.open(os.path.join(folder, "owner"), "w", encoding="utf-8") as file:
            file.write(identity())
        return _Renewer(folder)
    except BaseException:  # such as a full disk: nobody else is to wait for it
        _remove(folder)
        raise


def _is_left(folder: str) -> bool:
    """Whether the process that made a folder has ended."""
    try:
        age = _now_of(folder) - os.stat(folder).st_mtime
        with io.open(os.path.join(folder, "owner"), encoding="utf-8") as file:
            host, boot, pid = file.read(1000).split()
    except (EnvironmentError, ValueError):
        return os.path.isdir(folder) and _age_s(folder) > STALE_S
    if host == host_name() and boot == boot_id() and pid.isdigit():
        return not _is_running(int(pid))
    return age > STALE_S


def _age_s(folder: str) -> float:
    try:
        return _now_of(folder) - os.stat(folder).st_mtime
    except EnvironmentError:
        return 0.0


def _now_of(folder: str) -> float:
    """Return the time by the file system's clock, which may be another machine's."""
    probe = "%s.%d.now" % (folder, os.getpid())
    with open(probe, "wb"):
        pass
    try:
        return os.stat(probe).st_mtime
    finally:
        os.unlink(probe)


def _is_running(pid: int) -> bool:
    """Whether there is such a process, and not just its exit status for its parent."""
    try:
        os.kill(pid, 0)
    except OSError as exc:
        return exc.errno != errno.ESRCH
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (EnvironmentError, IndexError):  # not Linux, or it has just ended
        return True


def _move_away(folder: str) -> bool:
    """Remove a folder whose maker has ended; False if somebody else did first."""
    away = "%s.%d.left" % (folder, os.getpid())
    try:
        os.rename(folder, away)
    except OSError:
        return False
    is_left = _is_left(away)
    if not is_left:  # it is new: somebody else moved the old one between our look and our move
        try:
            os.rename(away, folder)
        except OSError:
            pass
        return False
    _remove(away)
    return True


def _remove(folder: str) -> None:
    import shutil

    shutil.rmtree(folder, True)
