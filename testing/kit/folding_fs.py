"""A file system in memory whose names ignore case and Unicode form, as those of macOS do.

Run it as ``folding_fs.py FOLDER keeps|decomposes``, as root on Linux: it mounts itself, prints a
line, and ends when it is unmounted.  With ``decomposes`` it stores names in NFD, as HFS+ does, and
with ``keeps`` as they are given, as APFS does.  The messages are those of ``linux/fuse.h``, version
7.31; start at ``FileSystem.serve``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
import time
import unicodedata
from typing import Any

IN, OUT, ATTR = struct.Struct("=IIQQIIII"), struct.Struct("=IiQ"), struct.Struct("=6Q10I")
READ = struct.Struct("=QQI20x")  # of a read, a write, and of reading a directory
WRITE_MAX = 128 * 1024
MODE, USER, GROUP, SIZE, MTIME, MTIME_NOW = 1, 2, 4, 8, 32, 256  # what is set


def folded(name: str) -> str:
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


class Node:
    """A file, a directory or a link; ``names`` is {folded: (name, its node)}."""

    def __init__(self, number: int, mode: int, user: int = 0, group: int = 0) -> None:
        self.number, self.mode, self.user, self.group = number, mode, user, group
        self.content = bytearray()
        self.names: dict[str, tuple[str, Node]] = {}
        self.links = 1
        self.changed_ns = time.time_ns()

    def touch(self) -> None:
        self.changed_ns = time.time_ns()

    def attributes(self) -> bytes:
        seconds, rest = divmod(self.changed_ns, 10**9)
        size = len(self.content)
        return ATTR.pack(
            self.number, size, -(-size // 512), seconds, seconds, seconds, rest, rest, rest,
            self.mode, self.links, self.user, self.group, 0, 4096, 0,
        )  # fmt: skip

    def entry(self) -> bytes:
        return struct.pack("=4Q2I", self.number, 0, 0, 0, 0, 0) + self.attributes()


class FileSystem:
    """Answers one request after the other; a method ``on_NUMBER`` returns the answer to each."""

    def __init__(self, decomposes: bool) -> None:
        self._decomposes = decomposes
        self._nodes = {1: Node(1, stat.S_IFDIR | 0o755)}

    def serve(self, fd: int) -> None:
        while True:
            try:
                request = os.read(fd, WRITE_MAX + 65536)
            except OSError as exc:
                if exc.errno == errno.ENODEV:  # unmounted
                    return
                continue
            _, code, unique, number, user, group, _, _ = IN.unpack_from(request)
            if code in (2, 42):  # forgotten nodes have no answer
                continue
            handler = getattr(self, f"on_{code}", None)
            answer, failed = b"", 0 if handler else errno.ENOSYS
            try:
                if handler:
                    answer = handler(self._nodes[number] if number else None,
                                     request[IN.size :], user, group)  # fmt: skip
            except OSError as exc:
                failed = exc.errno or errno.EIO
            os.write(fd, OUT.pack(OUT.size + len(answer), -failed, unique) + answer)

    # names

    def _find(self, folder: Node, name: bytes) -> Node:
        found = folder.names.get(folded(os.fsdecode(name)))
        if found is None:
            raise OSError(errno.ENOENT, "no such name")
        return found[1]

    def _put(self, folder: Node, name: bytes, node: Node) -> None:
        text = os.fsdecode(name)
        text = unicodedata.normalize("NFD", text) if self._decomposes else text
        folder.names[folded(text)] = text, node
        folder.touch()

    def _make(self, folder: Node, name: bytes, mode: int, user: int, group: int) -> Node:
        if folded(os.fsdecode(name)) in folder.names:
            raise OSError(errno.EEXIST, "is there")
        node = Node(max(self._nodes) + 1, mode, user, group)
        self._nodes[node.number] = node
        self._put(folder, name, node)
        return node

    def _remove(self, folder: Node, name: bytes) -> None:
        node = self._find(folder, name)
        if node.names:
            raise OSError(errno.ENOTEMPTY, "is not empty")
        del folder.names[folded(os.fsdecode(name))]
        node.links -= 1
        folder.touch()

    # requests

    def on_26(self, *_: Any) -> bytes:  # INIT
        return struct.pack("=4I2H2I2HI28x", 7, 31, 65536, 0, 8, 8, WRITE_MAX, 1, 32, 0, 0)

    def on_1(self, folder: Node, body: bytes, *_: Any) -> bytes:  # LOOKUP
        return self._find(folder, body[:-1]).entry()

    def on_3(self, node: Node, *_: Any) -> bytes:  # GETATTR
        return struct.pack("=Q2I", 0, 0, 0) + node.attributes()

    def on_4(self, node: Node, body: bytes, *_: Any) -> bytes:  # SETATTR
        fields = struct.unpack_from("=2I6Q8I", body)
        valid, size, mtime, mtime_rest = fields[0], fields[3], fields[6], fields[9]
        mode, user, group = fields[11], fields[13], fields[14]
        if valid & MODE:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        node.user = user if valid & USER else node.user
        node.group = group if valid & GROUP else node.group
        if valid & SIZE:
            node.content[size:] = bytes(max(0, size - len(node.content)))
        if valid & MTIME_NOW:
            node.touch()
        elif valid & MTIME:
            node.changed_ns = mtime * 10**9 + mtime_rest
        return self.on_3(node)

    def on_5(self, node: Node, *_: Any) -> bytes:  # READLINK
        return bytes(node.content)

    def on_6(self, folder: Node, body: bytes, user: int, group: int) -> bytes:  # SYMLINK
        name, text, _ = body.split(b"\0")
        node = self._make(folder, name, stat.S_IFLNK | 0o777, user, group)
        node.content[:] = text
        return node.entry()

    def on_9(self, folder: Node, body: bytes, user: int, group: int) -> bytes:  # MKDIR
        (mode,) = struct.unpack_from("=I", body)
        return self._make(folder, body[8:-1], stat.S_IFDIR | mode, user, group).entry()

    def on_35(self, folder: Node, body: bytes, user: int, group: int) -> bytes:  # CREATE
        _, mode = struct.unpack_from("=2I", body)
        node = self._make(folder, body[16:-1], mode, user, group)
        return node.entry() + self.on_14()

    def on_10(self, folder: Node, body: bytes, *_: Any) -> bytes:  # UNLINK
        self._remove(folder, body[:-1])
        return b""

    on_11 = on_10  # RMDIR

    def on_12(self, folder: Node, body: bytes, *_: Any) -> bytes:  # RENAME
        return self._rename(folder, struct.unpack_from("=Q", body)[0], body[8:])

    def on_45(self, folder: Node, body: bytes, *_: Any) -> bytes:  # RENAME2
        return self._rename(folder, struct.unpack_from("=Q", body)[0], body[16:])

    def _rename(self, folder: Node, number: int, names: bytes) -> bytes:
        old, new, _ = names.split(b"\0")
        node, other = self._find(folder, old), self._nodes[number]
        del folder.names[folded(os.fsdecode(old))]
        self._put(other, new, node)
        return b""

    def on_13(self, folder: Node, body: bytes, *_: Any) -> bytes:  # LINK
        node = self._nodes[struct.unpack_from("=Q", body)[0]]
        self._put(folder, body[8:-1], node)
        node.links += 1
        return node.entry()

    def on_14(self, *_: Any) -> bytes:  # OPEN
        return struct.pack("=Q2I", 0, 0, 0)

    on_27 = on_14  # OPENDIR

    def on_15(self, node: Node, body: bytes, *_: Any) -> bytes:  # READ
        _, start, size = READ.unpack_from(body)
        return bytes(node.content[start : start + size])

    def on_16(self, node: Node, body: bytes, *_: Any) -> bytes:  # WRITE
        _, start, size = READ.unpack_from(body)
        node.content.extend(bytes(max(0, start - len(node.content))))
        node.content[start : start + size] = body[READ.size :]
        node.touch()
        return struct.pack("=2I", size, 0)

    def on_28(self, folder: Node, body: bytes, *_: Any) -> bytes:  # READDIR
        _, start, size = READ.unpack_from(body)
        found = b""
        for place, (name, node) in enumerate(list(folder.names.values())[start:], start + 1):
            raw = os.fsencode(name)
            kind = stat.S_IFMT(node.mode) >> 12
            item = struct.pack("=2Q2I", node.number, place, len(raw), kind) + raw
            item += bytes(-len(item) % 8)
            if len(found) + len(item) > size:
                break
            found += item
        return found

    def on_17(self, *_: Any) -> bytes:  # STATFS
        return struct.pack("=5Q4I24x", 10**6, 10**6, 10**6, 10**6, 10**6, 4096, 255, 4096, 0)

    def on_18(self, *_: Any) -> bytes:  # RELEASE
        return b""

    on_20 = on_25 = on_29 = on_30 = on_18  # FSYNC, FLUSH, RELEASEDIR, FSYNCDIR


def mount(folder: str) -> int:
    """Mount what answers on the descriptor that is returned; OSError if that may not be."""
    fd = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"folding", os.fsencode(folder), b"fuse", 0, options) != 0:
        raise OSError(ctypes.get_errno(), "cannot mount", folder)
    return fd


if __name__ == "__main__":
    descriptor = mount(sys.argv[1])
    print("mounted", flush=True)
    FileSystem(sys.argv[2] == "decomposes").serve(descriptor)
