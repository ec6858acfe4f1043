"""Where all is that execnet keeps on this machine, and which of it nobody needs any more.

Nothing here is created with a name that another user could have taken before.  ``PLACES`` lists
them as ``doc/folders.rst`` shows them.  Start there, at ``home`` and at ``leftovers``.

Two places are computed again by files that run where this one is not: the default key by
``script/socketserver.py``, and the folder of services by ``_service/far_find.py``, which checks
who can change it, too.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

YOUNG_S = 60.0  # another process may still be at a file that is younger
SOCKET_PATH_MAX = 104  # of some systems; Linux takes 108
HOME_VARIABLE = "EXECNET_HOME"
TEMPORARY = "execnet-debug-", "execnet-cert-"  # how what may be left in the folder for such begins
# Where the documentation says that each place is, -> what computes it.
PLACES: dict[str, Callable[[], list[str]]] = {
    "~/.execnet": lambda: [home()],
    "~/.execnet/key": lambda: [key_file()],
    "~/.execnet/shell_history": lambda: [history_file()],
    "~/.execnet/resume": lambda: [resume_folder()],
    "~/.execnet/builds": lambda: [builds_folder()],
    "$XDG_RUNTIME_DIR/execnet-ssh": lambda: ssh_folders(),
    "$XDG_RUNTIME_DIR/execnet": lambda: services_folders(),
    "the folder for temporary files": lambda: [temporary_folder()],
}


def home() -> str:
    """Return the folder for what lasts; it need not be there."""
    return os.environ.get(HOME_VARIABLE) or os.path.join(os.path.expanduser("~"), ".execnet")


def key_file() -> str:
    """Return the key that socket servers and their clients take where none is named."""
    return os.path.join(home(), "key")


def history_file() -> str:
    """Return the file of what was typed at ``execnet shell``."""
    return os.path.join(home(), "shell_history")


def resume_folder() -> str:
    """Return the folder of the records of workers with ``resume=``."""
    return os.path.join(home(), "resume")


def builds_folder() -> str:
    """Return the folder of the wheels of this user's projects."""
    return os.path.join(home(), "builds")


def services_folders() -> list[str]:
    """Return the folders that services may be in, the best first; the first usable one is taken."""
    folders = [os.path.join(os.path.realpath(home()), "services")]
    if os.path.isabs(os.environ.get("XDG_RUNTIME_DIR", "")):
        folders.insert(0, os.path.join(os.environ["XDG_RUNTIME_DIR"], "execnet"))
    return folders


def temporary_folder() -> str:
    """Return the folder for traces, and for certificates for a moment."""
    import tempfile

    return tempfile.gettempdir()


def ssh_folders() -> list[str]:
    """Return the folders that sockets of shared connections by ssh may be in, the best first."""
    if not hasattr(os, "getuid"):  # Windows' ssh does not share connections
        return []
    folders = [os.path.expanduser("~/.ssh/execnet"), f"/tmp/execnet-ssh-{os.getuid()}"]
    if os.environ.get("XDG_RUNTIME_DIR"):
        folders.insert(0, os.path.join(os.environ["XDG_RUNTIME_DIR"], "execnet-ssh"))
    return folders


def ssh_folder(name_bytes: int) -> str | None:
    """Return a folder for such sockets that only this user can enter, made if need be.

    name_bytes: how long the name of a socket may be.  None if there is no such folder.
    """
    for folder in ssh_folders():
        if len(os.fsencode(folder)) + name_bytes <= SOCKET_PATH_MAX and _is_private(folder):
            return folder
    return None


def _is_private(folder: str, make: bool = True) -> bool:
    """Whether there is a folder, or one could be made, that only this user can enter."""
    with suppress(OSError):
        for path in (os.path.dirname(folder), folder) if make else ():
            with suppress(FileExistsError):
                os.mkdir(path, 0o700)
        found = os.lstat(folder)
        return (
            stat.S_ISDIR(found.st_mode)
            and found.st_uid == os.getuid()
            and stat.S_IMODE(found.st_mode) & 0o077 == 0
            and os.access(folder, os.W_OK | os.X_OK)
        )
    return False


def leftovers() -> Iterator[tuple[str, str]]:
    """Yield (path, what it is) of all of this user's that no process needs any more.

    Keys are none of them.
    """
    for folder in ssh_folders():
        if _is_private(folder, make=False):
            for entry in _entries(folder):
                if _is_stale_socket(entry):
                    yield entry.path, "the socket of a connection by ssh that has ended"
    for entry in _entries(home()):
        if entry.name.startswith("key.") and _is_ours(entry) and _is_old(entry):
            yield entry.path, "a key that was not finished"
    for entry in _entries(temporary_folder()):
        if entry.name.startswith(TEMPORARY) and _is_ours(entry) and _is_over(entry.name):
            yield entry.path, "a trace, or a file for a moment, of a process that has ended"


def remove(path: str) -> None:
    """Remove what ``leftovers`` gave; it may have gone meanwhile."""
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            import shutil

            shutil.rmtree(path)
        else:
            os.unlink(path)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with suppress(OSError), os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
    return []


def _is_ours(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):
        return entry.stat(follow_symlinks=False).st_uid == getattr(os, "getuid", int)()
    return False


def _is_stale_socket(entry: os.DirEntry[str]) -> bool:
    import socket

    with suppress(OSError):
        if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(entry.path)
                except ConnectionRefusedError:
                    return True
    return False


def _is_old(entry: os.DirEntry[str]) -> bool:
    """Whether nobody has written a file for so long that it is not just being made."""
    with suppress(OSError):
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > YOUNG_S
    return False


def _is_over(name: str) -> bool:
    """Whether a name has the number of a process, and that has ended."""
    number = name.split("-")[2]
    return number.isdigit() and not is_running(int(number))


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not just its exit status for its parent."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):  # not Linux, or it has just ended
        return True
