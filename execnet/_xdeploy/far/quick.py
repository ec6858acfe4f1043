"""Runs ``start`` as it is kept here, compiled, so that hardly anything has to be sent.

This file is shipped by itself.  Start at ``main``.
"""

from __future__ import annotations

import marshal
import os
import sys
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...gateway_base import Channel


def main(channel: Channel) -> None:
    """Run ``start`` with the second item, after one of (root, digest); raise if it is not kept."""
    path = start_path(*channel.receive())
    for one in (os.path.dirname(os.path.dirname(path)), os.path.dirname(path), path):
        check_owner(one)
    with open(path, "rb") as file:
        _, parts = marshal.load(file)
    base = sys.modules[channel.__class__.__module__]
    for name in parts:
        base._sent_parts.setdefault(name, parts[name])
    for name in parts:
        if name.startswith("_xdeploy."):  # ``start`` loads the others meanwhile
            module = base.load_part(name)
    try:
        os.utime(path, None)  # noted as its last use
    except OSError:  # it is being pruned
        pass
    module.main(channel)


def start_path(root: str, digest: str) -> str:
    """Return the file that has ``start``, compiled by this Python."""
    version = zlib.crc32(sys.version.encode("utf-8", "replace")) & 0xFFFFFFFF
    return os.path.join(root_folder(root), "core", "%s%08x" % (native(digest)[:16], version))


def root_folder(root: str) -> str:
    """Return the folder that everything is in: ``root``, or one in the user's cache folder."""
    if root:
        return os.path.abspath(os.path.expanduser(native(root)))
    caches = os.environ.get("XDG_CACHE_HOME") or ""
    if not os.path.isabs(caches):
        caches = os.path.expanduser(os.path.join("~", ".cache"))
    return os.path.join(os.path.abspath(caches), "execnet")


def check_owner(path: str) -> None:
    """Raise OSError if a folder or file is somebody else's, or others can write to it."""
    if os.name == "posix":
        status = os.stat(path)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise OSError("%s can be written by other users, so it is not used" % path)


def native(text: str | bytes) -> str:
    """Return a text as this Python's ``str``, which is bytes on Python 2."""
    if isinstance(text, str):
        return text
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text.encode("utf-8")
